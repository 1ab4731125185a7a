"""LFM2's backbone here beside transformers and llama.cpp, in one run on the CPU, random weights.

    python benchmarks/backbone.py                 # 350M: about 15 minutes on two cores, 8 GB
    python benchmarks/backbone.py --shape tiny --quick        # seconds: does it work at all?

Every engine is measured once a round, one at a time, so that a busy machine slows all rows alike.
Read ratios, not rates: they hold within one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: the folder above holds `benchmarks`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.backbone_engines import ENGINES, Engine, Setting, bandwidth
from benchmarks.peers import Peer, PeerDied
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import processor_name, usable_cores

TINY = BackboneConfig(
    2048, 256, ("conv", "full_attention", "conv", "full_attention"), heads=4, kv_heads=2,
    feed_forward=640,
)  # fmt: skip
BASE = "ours-int8"
PACKAGES = ("torch", "transformers", "xllamacpp", "gguf")


@dataclass
class Results:
    """Tokens per second, by engine, what and size, and round; and what went wrong."""

    per_s: dict[tuple[str, str, int], dict[int, float]] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)  # GB/s, by round
    notes: dict[str, str] = field(default_factory=dict)  # engine -> what it runs on
    absent: dict[str, str] = field(default_factory=dict)  # engine -> why it has no (more) figures

    def add(self, engine: str, what: str, size: int, turn: int, per_s: float) -> None:
        self.per_s.setdefault((engine, what, size), {})[turn] = per_s


def main() -> None:
    args = parse()
    results = Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = max(args.sizes) + args.decoded + 8
        setting = Setting(args.config, args.threads, context, folder)
        peers = {}
        for engine in args.engines:
            peer = start(engine, setting, results)
            if peer is not None:
                stack.callback(peer.close)
                peers[engine.name] = peer
        for turn in range(args.rounds):
            results.memory.append(bandwidth(args.threads))
            for name in list(peers):
                tell(f"round {turn + 1} of {args.rounds}: {name}")
                try:
                    measure(peers[name], name, turn, args, results)
                except PeerDied as error:
                    results.absent[name] = f"{error}, in round {turn + 1}"
                    del peers[name]
    record = summary(results, args)
    print(json.dumps(record, indent=1) if args.json else table(record))


def parse() -> argparse.Namespace:
    from lfm2_mm.shapes import SHAPES

    shapes = {"tiny": TINY} | {name: c for name, c in SHAPES.items() if c.experts is None}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="LFM2-350M", choices=shapes, metavar="NAME",
                        help=f"{', '.join(shapes)} (default %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--only", help="engines or families of them, with commas between: "
                        + ", ".join(engine.name for engine in ENGINES))  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round of short prompts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [engine.name for engine in ENGINES]
    known = {known for engine in ENGINES for known in (engine.name, engine.family)}
    if unknown := sorted(set(wanted) - known):
        parser.error(
            f"--only: no engine {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if min(args.rounds, args.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    args.engines = [e for e in ENGINES if e.name in wanted or e.family in wanted]
    args.config = shapes[args.shape]
    args.sizes, args.decoded = ((16, 128), 4) if args.quick else ((128, 1024, 4096), 32)
    args.rounds = 1 if args.quick else args.rounds
    return args


def start(engine: Engine, setting: Setting, results: Results) -> Peer | None:
    """The engine in its own process, ready; or None, with the reason among the results."""
    if missing := engine.missing():
        results.absent[engine.name] = f"not installed: pip install {' '.join(missing)}"
        return None
    tell(f"opening {engine.name}")
    if engine.family == "llama":
        from benchmarks.backbone_engines import write_random

        write_random(setting, engine.weights)
    peer = Peer(engine.open, setting, engine.weights)
    try:
        results.notes[engine.name] = peer.answer()
    except PeerDied as error:
        results.absent[engine.name] = f"{error}, while opening"
        return None
    return peer


def measure(peer: Peer, name: str, turn: int, args: argparse.Namespace, results: Results) -> None:
    """One round of one engine: every size, after a short run that warms up."""
    peer.ask(min(64, *args.sizes), 4)
    for size in args.sizes:
        took = peer.ask(size, args.decoded)
        results.add(name, "prefill", size, turn, size / took.prefill)
        results.add(name, "decode", size, turn, args.decoded / took.decode)


def summary(results: Results, args: argparse.Namespace) -> dict[str, Any]:
    """Everything the table shows, as JSON has it."""
    return {
        "command": shlex.join(["python", "benchmarks/backbone.py", *sys.argv[1:]]),
        "shape": args.shape,
        "machine": {"processor": processor_name(), "threads": args.threads,
                    "system": platform.platform(), "memory_gb_per_s": results.memory},
        "versions": {"python": platform.python_version()} | {p: installed(p) for p in PACKAGES},
        "rows": rows(results, args),
        "notes": results.notes,
        "absent": results.absent,
    }  # fmt: skip


def rows(results: Results, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a measure and engine; `ours_is` is the median over rounds of ours-int8 / this."""
    from torch import device

    from lfm2_mm.backbone import Backbone

    with device("meta"):
        parameters = Backbone(args.config).parameter_count()
    bits = {engine.name: engine.bits for engine in ENGINES}
    out = []
    for (engine, what, size), per_s in results.per_s.items():
        base = results.per_s.get((BASE, what, size), {})
        ratios = [base[turn] / value for turn, value in per_s.items() if turn in base]
        weight_bytes = parameters * bits[engine] / 8
        out.append(
            {
                "what": what,
                "size": size,
                "engine": engine,
                "per_s": [per_s.get(turn) for turn in range(len(results.memory))],
                "median": median(per_s.values()),
                "best": max(per_s.values()),
                "ours_is": median(ratios) if ratios else None,
                "weight_bytes": weight_bytes,
                "limit": 1e9 * max(results.memory) / weight_bytes if what == "decode" else None,
            }
        )
    return sorted(out, key=lambda row: (row["what"] == "decode", row["size"]))


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(record: dict[str, Any]) -> str:
    machine, memory = record["machine"], record["machine"]["memory_gb_per_s"]
    lines = [
        f"{record['shape']}, random weights, batch 1, rounds: {len(memory)}; tokens per second",
        f"{machine['processor']}, {machine['threads']} threads; memory is read at "
        f"{max(memory):.1f} GB/s (by round: {', '.join(f'{m:.1f}' for m in memory)})",
        ", ".join(f"{name} {number or '-'}" for name, number in record["versions"].items()),
    ]
    heads = ("engine", "median", "best", f"{BASE} is", "weights MB", "limit", "of limit")
    group = None
    for row in record["rows"]:
        if group != (group := (row["what"], row["size"])):
            title = "prompt of {}" if group[0] == "prefill" else "decode after {}"
            lines += ["", line(title.format(group[1]), *heads[1:])]
        limit = row["limit"]
        lines.append(
            line(
                row["engine"],
                f"{row['median']:.1f}",
                f"{row['best']:.1f}",
                f"{row['ours_is']:.2f} x" if row["ours_is"] else "-",
                f"{row['weight_bytes'] / 1e6:.0f}",
                f"{limit:.1f}" if limit else "-",
                f"{row['best'] / limit:.0%}" if limit else "-",
            )
        )
    lines += ["", *(f"{name}: {why}" for name, why in record["absent"].items())]
    lines += [f"{name}: {note}" for name, note in record["notes"].items()]
    lines += ["", "limit: what memory allows in decoding when every weight is read once a token;",
              "keys and values are not counted. x: median over rounds.",
              "Repeat: " + record["command"]]  # fmt: skip
    return "\n".join(lines)


def line(first: str, *cells: str) -> str:
    return f"{first:<20}" + "".join(f"{cell:>14}" for cell in cells)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
