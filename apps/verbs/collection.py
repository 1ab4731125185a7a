"""The verbs of an index: `index`, `search`, `delete`, `info`, `check`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from apps import wiring
from apps.screen import Screen, duration, plain, size

if TYPE_CHECKING:
    from retrieval.types import Hit, Info, Match, Report

STRONG = 0.6  # cosine from which a matched word is shown in bold


def index(args: Namespace, screen: Screen) -> None:
    """Create an index or bring it up to date."""
    with wiring.open_index(args, create=True) as opened, screen.progress("bytes") as tell:
        report = opened.update(
            args.paths,
            prune=args.prune,
            meta=dict(args.meta),
            progress=lambda step: tell(step.bytes, step.of_bytes, step.source),
        )
    screen.result({"index": str(args.index), **asdict(report)}, _report_lines(report))


def _report_lines(report: Report) -> Iterator[str]:
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
    with wiring.open_index(args) as opened:
        start = time.perf_counter()
        hits = opened.search(args.query, k=args.k, mode=args.mode, where=dict(args.filter) or None)
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
    with wiring.open_index(args) as opened:
        report = opened.delete(args.source)
        held = opened.info()
    lines = [f"{report.removed} removed", *_info_lines(held)]
    screen.result({**asdict(held), "removed": report.removed}, lines)


def info(args: Namespace, screen: Screen) -> None:
    """Say what an index holds."""
    with wiring.open_index(args) as opened:
        held = opened.info()
    screen.result(asdict(held), _info_lines(held))


def _info_lines(held: Info) -> list[str]:
    return [
        f"{held.documents:,} documents, {held.chunks:,} chunks, {held.tokens:,} tokens",
        f"{size(held.bytes)}, model {held.model}, format version {held.version}",
    ]


def check(args: Namespace, screen: Screen) -> int:
    """Verify an index; exit code 1 where something is damaged."""
    with wiring.open_index(args) as opened:
        damaged = opened.check()
    record = {"ok": not damaged, "damaged": [asdict(one) for one in damaged]}
    lines = [f"damaged {plain(one.file)}: {plain(one.what)}" for one in damaged]
    screen.result(record, lines or [f"{args.index} is sound"])
    return 1 if damaged else 0
