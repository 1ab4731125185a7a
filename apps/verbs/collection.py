"""The verbs of an index: `index`, `search`, `delete`, `info`, `check`, `repair`, `compact`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from apps import wiring
from apps.screen import Screen, duration, plain, size
from lfm2_mm.errors import BadInput

if TYPE_CHECKING:
    from retrieval.index import Index
    from retrieval.recall import Recall
    from retrieval.stores.collection import Collection
    from retrieval.types import Damage, Hit, Info, Match, Mode, Report

MOST_QUERIES = 1 << 20  # bytes
STRONG = 0.6  # cosine from which a matched word is shown in bold


def index(args: Namespace, screen: Screen) -> None:
    """Create an index or bring it up to date."""
    together = args.workers is not None or args.ray is not None
    if args.parts and not together:
        args.wrong_usage("--parts goes with --workers or --ray")
    with wiring.open_place(args, create=True) as opened, screen.progress("bytes") as tell:
        how: dict[str, Any] = {
            "prune": args.prune,
            "meta": dict(args.meta),
            "progress": lambda step: tell(step.bytes, step.of_bytes, step.source),
        }
        if together:
            from retrieval.parallel import update

            parts, workers = wiring.parts_of(args), wiring.workers_of(args)
            report = update(opened, args.paths, workers, parts, **how)
        else:
            report = opened.update(args.paths, **how)
    screen.result({**place_of(args), **asdict(report)}, report_lines(report))


def place_of(args: Namespace) -> dict[str, str]:
    """Where a verb worked, for its record."""
    return {"index": args.index} if args.index else {"store": args.store}


def report_lines(report: Report) -> Iterator[str]:
    for one in report.skipped:
        yield f"skipped {plain(one.path)}: {plain(one.why)}"
    yield (
        f"{report.added} added, {report.updated} updated, {report.removed} removed, "
        f"{len(report.skipped)} skipped in {duration(report.seconds)}"
    )
    yield (
        f"the index holds {report.documents:,} documents, {report.chunks:,} chunks, "
        f"{report.tokens:,} tokens, {size(report.bytes)}"
    )


def search(args: Namespace, screen: Screen) -> None:
    """Search an index."""
    with wiring.open_place(args) as opened:
        start = time.perf_counter()
        mode: Mode = args.mode or ("colbert" if args.store else "hybrid")
        hits = opened.search(args.query, k=args.k, mode=mode, where=args.filter)
        seconds = time.perf_counter() - start
    record = {"query": args.query, "hits": [asdict(hit) for hit in hits], "seconds": seconds}
    screen.result(record, _hit_lines(hits, screen))


def _hit_lines(hits: Sequence[Hit], screen: Screen) -> Iterator[str]:
    if not hits:
        yield "nothing found"
    for hit in hits:
        place = f", page {hit.page}" if hit.page is not None else ""
        heading = f"  {plain(hit.heading)}" if hit.heading else ""
        source = screen.mark(plain(hit.source))
        yield f"{hit.rank:3d}  {hit.score:8.4g}  {source}{place}, {hit.start}-{hit.end}{heading}"
        yield f"     {marked(hit.text, hit.matches, screen)}"


def marked(text: str, matches: Sequence[Match], screen: Screen) -> str:
    """`text` on one line, with the matched words made to stand out."""
    parts, at = [], 0
    for match in sorted(matches, key=lambda match: (match.start, -match.score)):
        if match.start < at:  # an earlier match already covers this word
            continue
        parts.append(plain(text[at : match.start]))
        word = plain(text[match.start : match.end])
        parts.append(screen.mark(word, strong=match.score >= STRONG))
        at = match.end
    return " ".join("".join([*parts, plain(text[at:])]).split())


def delete(args: Namespace, screen: Screen) -> None:
    """Delete documents by source or pattern."""
    with wiring.open_place(args) as opened:
        report = opened.delete(args.source)
        held = opened.info()
    lines = [f"{report.removed} removed", *_info_lines(held)]
    screen.result({**asdict(held), "removed": report.removed}, lines)


def info(args: Namespace, screen: Screen) -> None:
    """Say what an index holds."""
    with wiring.open_place(args) as opened:
        held = opened.info()
    screen.result(asdict(held), _info_lines(held))


def _info_lines(held: Info) -> list[str]:
    lines = [
        f"{held.documents:,} documents, {held.chunks:,} chunks, {held.tokens:,} tokens",
        f"{size(held.bytes)}, model {held.model}, format version {held.version}",
    ]
    if held.codec:
        pooled = f", {held.pool} pooled into one" if held.pool > 1 else ""
        lines.append(f"vectors: {held.codec}, {held.bytes_per_token} bytes a token{pooled}")
    return lines


def check(args: Namespace, screen: Screen) -> int:
    """Verify an index; exit code 1 where something is damaged."""
    if not args.recall and (args.queries or args.target is not None or args.keep):
        args.wrong_usage("--queries, --target and --keep go with --recall")
    if args.keep and args.target is None:
        args.wrong_usage("--keep goes with --target: the recall to be kept")
    with wiring.open_place(args) as opened:
        damaged = opened.check()
        record: dict[str, Any] = {"ok": not damaged, "damaged": [asdict(one) for one in damaged]}
        lines = _damage_lines(damaged) or [f"{plain(args.index or args.store)} is sound"]
        if args.recall and not damaged:
            found = _recall(args, opened)
            record["recall"] = asdict(found)
            lines += _recall_lines(found, args)
    screen.result(record, lines)
    return 1 if damaged else 0


def _damage_lines(damaged: Sequence[Damage]) -> list[str]:
    return [f"damaged {plain(one.file)}: {plain(one.what)}" for one in damaged]


def _recall(args: Namespace, opened: Index | Collection) -> Recall:
    queries = None
    if args.queries:
        queries = read_queries(args.queries)
    found = opened.recall(args.k, queries, target=args.target)
    if args.keep and found.reached:
        opened.set_effort(found.effort)
    return found


def read_queries(path: str) -> list[str]:
    """The lines of a file that are not blank. Raises BadInput where there are none, or too many."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_QUERIES + 1)
    except OSError as error:
        raise BadInput(
            f"cannot read the queries in {path}: {error.strerror}; give a text file, one a line"
        ) from error
    lines = content.decode("utf-8", errors="replace").splitlines()
    if not (queries := [line for line in lines if line.strip()]):
        raise BadInput(f"no query in {path}: one a line is read")
    if len(content) > MOST_QUERIES:
        raise BadInput(f"{path} holds more than {MOST_QUERIES >> 20} MiB of queries; take some")
    return queries


def _recall_lines(found: Recall, args: Namespace) -> list[str]:
    if not found.queries:
        return ["recall: nothing to measure, the index is empty"]
    lines = [
        f"recall@{found.k} {found.value:.3f} over {found.queries} queries: "
        f"{found.search_ms:.1f} ms a query, exact search {found.exact_ms:.1f} ms"
    ]
    if found.target is not None:
        effort = f"an effort of {found.effort}" if found.effort else "the usual effort"
        kept = "kept" if args.keep else "--keep makes searches use it"
        lines.append(
            f"{effort} reaches {found.target:g}; {kept}"
            if found.reached
            else f"{found.target:g} was not reached"
        )
    elif found.value < 1:
        lines.append("more: `check --recall --target 0.99` finds the effort that reaches it")
    return lines


def repair(args: Namespace, screen: Screen) -> int:
    """Keep what is whole of a damaged index, encode the rest again."""
    with wiring.open_index(args) as opened, screen.progress("chunks") as tell:
        damaged, report = opened.repair(lambda step: tell(step.chunks, 0, step.source))
        left = opened.check()
    record = {
        "index": str(args.index),
        "ok": not left,
        "damaged": [asdict(one) for one in damaged],
        **asdict(report),
    }
    lines = _damage_lines(damaged) or [f"{plain(args.index)} was sound"]
    screen.result(record, [*lines, *report_lines(report)])
    return 1 if left else 0


def compact(args: Namespace, screen: Screen) -> None:
    """Merge segments and give back the space of what was deleted."""
    with wiring.open_place(args) as opened, screen.progress("chunks") as tell:
        before = opened.info().bytes
        held = opened.compact(lambda done, total: tell(done, total, "copying"))
    lines = [f"{size(before)} became {size(held.bytes)}", *_info_lines(held)]
    screen.result({**asdict(held), "bytes_before": before}, lines)
