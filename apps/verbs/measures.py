"""The verbs `evaluate` (how good) and `bench` (how fast)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from apps.cli import SHAPES, SPEECH_SHAPES, VISION_SHAPES
from apps.screen import Screen, table


def evaluate(args: Namespace, screen: Screen) -> None:
    """Measure the ranking on a folder of judged queries."""
    from retrieval.evaluation import evaluate as measure

    with screen.progress("documents") as tell:
        found = measure(
            args.folder,
            model=args.model,
            mode=args.mode,
            index=args.index,
            store=args.store,
            device=args.device,
            dtype=args.dtype,
            offline=args.offline,
            progress=tell,
        )
    screen.result(found, [f"{key.ljust(12)} {shown(value)}" for key, value in found.items()])


def bench(args: Namespace, screen: Screen) -> None:
    """Measure speed; every row is told when it is known, unless one document is wanted."""
    rows = []
    for row in _rows(args):
        rows.append(row)
        if not screen.as_json:
            screen.say("  ".join(f"{key} {shown(value)}" for key, value in row.items()))
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[shown(row.get(head)) for head in heads] for row in rows]
    screen.result(rows, table(heads, cells))


def _rows(args: Namespace) -> Iterator[dict[str, Any]]:
    from apps.bench import bench_chat
    from apps.bench_retrieval import bench_retrieval
    from apps.bench_speech import bench_speech
    from apps.bench_vision import bench_vision

    how = {"device": args.device, "dtype": args.dtype}
    if args.what in ("chat", None):
        yield from bench_chat(shape_for(args, SHAPES), **how)
    if args.what in ("vision", None):
        yield from bench_vision(shape_for(args, VISION_SHAPES), **how)
    if args.what in ("speech", None):
        yield from bench_speech(shape_for(args, SPEECH_SHAPES), **how)
    if args.what in ("retrieval", None):
        yield from bench_retrieval(
            args.model, device=args.device, dtype=args.dtype, offline=args.offline
        )


def shape_for(args: Namespace, known: tuple[str, ...]) -> str:
    """The shape to measure: the one asked, if it is of this kind, else the smallest."""
    if args.shape in known:
        return str(args.shape)
    if args.shape is not None and args.what is not None:
        args.wrong_usage(f"bench {args.what} has no shape {args.shape}; it has {', '.join(known)}")
    return known[0]


def shown(value: object) -> str:
    """A figure for a person."""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return "-" if value is None else str(value)
