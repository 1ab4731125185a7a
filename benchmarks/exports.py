"""Each export at the shape of a published checkpoint, random weights: size, agreement, speed.

One token after another after a short prompt, every runtime with the same number of threads, ours
beside it in the same run. Prints one table, or JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from apps.screen import size, table
from lfm2_mm.checkpoint import ASSETS
from lfm2_mm.errors import LfmError
from lfm2_mm.exports import checks
from lfm2_mm.exports.export import export, prepare
from lfm2_mm.exports.source import Reading, Source, open_source
from lfm2_mm.shapes import SHAPES, random_backbone, random_tensors
from lfm2_mm.weights import write

SUFFIXES = {"gguf": ".gguf", "onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}
ROWS = ("gguf f32", "gguf f16", "gguf q8_0", "gguf q4_0", "onnx f32", "openvino f32",
        "executorch f32")  # fmt: skip
OURS = ("fp32", "bf16", "int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="LFM2-350M", choices=SHAPES)
    parser.add_argument("--only", help=f"rows with commas between: {', '.join((*OURS, *ROWS))}")
    parser.add_argument(
        "--speed", action="store_true", help="only that: no checks, one row at once"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [*OURS, *ROWS]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in measured(args.shape, wanted, Path(folder), args.speed):
            tell("  ".join(row.values()))  # a run that is stopped has told what it found
            rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    head = ("what", "tokens/s", "size", "KL", "runtime KL", "runtime")
    print("\n".join(table(head, [tuple(row.values()) for row in rows])))


def measured(shape: str, wanted: list[str], folder: Path, speed: bool) -> Iterator[dict[str, Any]]:
    """One record a row; what cannot run here says why."""
    source = random_source(shape, folder / "checkpoint")
    ids = checks.prompt_of(source)
    for dtype in (one for one in OURS if one in wanted):
        yield record(f"ours {dtype}", checks.one_by_one(ours(shape, dtype).read, ids))
    for row in (one for one in ROWS if one in wanted):
        target, kind = row.split()
        tell(row)
        output = folder / f"made{SUFFIXES[target]}"
        try:
            kind = prepare(target, kind, output, force=True)
            if speed:
                yield just_run(source, row, target, kind, output)
                continue
            report = export(source, target, kind, output, context=256)
        except LfmError as error:
            yield record(row, 0.0, runtime=str(error))
            continue
        yield record(
            row, report.theirs, size(report.bytes), max(c.kl for c in report.checks),
            max(c.runtime_kl for c in report.checks),
            report.runtime + ("" if report.ok else ", DISAGREES"),
        )  # fmt: skip


def just_run(source: Source, row: str, target: str, kind: str, output: Path) -> dict[str, Any]:
    """Written and run, not checked."""
    module = import_module(f"lfm2_mm.exports.to_{target}")
    module.write(source, output, kind, 256)
    files = (output, output.with_suffix(".bin"), output.with_name(f"{output.name}.data"))
    held = sum(file.stat().st_size for file in files if file.exists())
    runner = module.open_runner(source, output)
    try:
        rate = runner.tokens_per_s(checks.prompt_of(source))
    finally:
        runner.close()
    return record(row, rate, size(held), runtime=runner.runtime)


def record(
    what: str, rate: float, held: str = "", kl: float = 0.0, own: float = 0.0, runtime: str = ""
) -> dict[str, Any]:
    return {"what": what, "tokens_per_s": f"{rate:.1f}", "size": held, "kl": f"{kl:.1e}",
            "runtime_kl": f"{own:.1e}", "runtime": runtime}  # fmt: skip


def random_source(shape: str, folder: Path) -> Source:
    """A checkpoint folder of this shape; its words are those of a bundled one."""
    tell(f"making random weights of the shape {shape}")
    config = SHAPES[shape]
    tensors = {f"model.{key}": tensor for key, tensor in random_tensors(config)}
    words = (ASSETS / "nano_colbert" / "tokenizer.json").read_bytes()
    write(folder, tensors, config.to_json(), {"tokenizer.json": words})
    return open_source(folder, shape, "fp32")


def ours(shape: str, dtype: str) -> Reading:
    from lfm2_mm.device import choose

    tell(f"ours {dtype}")
    return Reading(random_backbone(SHAPES[shape], choose("cpu", dtype)))


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
