"""The verbs `encode` (a batch of files, as a job for any scheduler) and `attach` (its result), and
`copy` (a whole index into a store, or back)."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from dataclasses import asdict

from apps import wiring
from apps.screen import Screen, duration, plain
from apps.verbs.collection import place_of, report_lines


def encode(args: Namespace, screen: Screen) -> None:
    """Encode files into a segment folder; one that is there already is told, not made again."""
    import retrieval

    with screen.progress("bytes") as tell:
        batch = retrieval.encode_segment(
            args.paths,
            args.into,
            model=args.model,
            codec=args.codec,
            pool=args.pool,
            meta=dict(args.meta),
            device=args.device,
            dtype=args.dtype,
            offline=args.offline,
            progress=lambda step: tell(step.bytes, step.of_bytes, step.source),
        )
    for one in batch.skipped:
        screen.say(f"skipped {plain(one.path)}: {plain(one.why)}")
    # The path alone, so that a script can hand it on.
    screen.result({**asdict(batch), "folder": str(batch.folder)}, [plain(str(batch.folder))])


def attach(args: Namespace, screen: Screen) -> None:
    """Take segment folders into an index or a store."""
    with wiring.open_place(args, create=True) as opened:
        report = opened.attach(args.segments)
    screen.result({**place_of(args), **asdict(report)}, report_lines(report))


def copy(args: Namespace, screen: Screen) -> None:
    """Copy an index into a store, or back; what is there already stays."""
    from retrieval.stores import open_store
    from retrieval.stores.copying import copy as stream

    places = [f"index:{args.index}", args.store]
    first, second = reversed(places) if args.back else places
    with (
        contextlib.closing(open_store(first)) as source,
        contextlib.closing(open_store(second, create=True)) as target,
        screen.progress("documents") as tell,
    ):
        found = stream(source, target, tell)
    record = {"index": args.index, "store": args.store, **asdict(found)}
    lines = [
        f"{found.copied:,} documents copied, {found.unchanged:,} were there, "
        f"in {duration(found.seconds)}",
        f"compared as they arrived: {found.documents:,} documents, {found.chunks:,} chunks, "
        f"{found.tokens:,} tokens, sha256 {found.checksum[:16]}",
    ]
    screen.result(record, lines)
