"""The verbs `encode` (a batch of files, as a job for any scheduler) and `attach` (its result)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from apps import wiring
from apps.screen import Screen, plain
from apps.verbs.collection import report_lines


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
    """Take segment folders into an index."""
    with wiring.open_index(args, create=True) as opened:
        report = opened.attach(args.segments)
    screen.result({"index": str(args.index), **asdict(report)}, report_lines(report))
