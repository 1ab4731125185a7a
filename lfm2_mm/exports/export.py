"""One export: written beside its final name, run in its own runtime, judged, and only then named.

Nothing half-written ever stands under the final name; what disagrees is kept with `.failed` behind
its name, to be looked at.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from lfm2_mm.errors import BadInput
from lfm2_mm.exports import checks
from lfm2_mm.exports.checks import Check, Limits
from lfm2_mm.exports.sight import check_pictures
from lfm2_mm.exports.source import Source
from lfm2_mm.extras import require
from lfm2_mm.llama import mmproj_of

TARGETS = ("gguf", "onnx", "executorch", "openvino")
CONTEXT = 2048  # positions of caches that cannot grow
FAILED = ".failed"


@dataclass(frozen=True)
class Report:
    """What was made and how far it agrees. `ours` and `theirs` are tokens a second, one by one."""

    path: Path
    bytes: int
    target: str
    type: str
    runtime: str
    reads: str  # "text", or "ids" where the target has no tokenizer or not this one
    judged_as: str  # "logits", or an encoder's "vectors"
    checks: tuple[Check, ...]
    limits: Limits
    remarks: tuple[str, ...]
    ours: float
    theirs: float
    mmproj: Path | None = None  # of a vision checkpoint for llama.cpp: the file that sees

    @property
    def ok(self) -> bool:
        return all(check.within for check in self.checks)


def prepare(target: str, kind: str | None, output: Path, *, force: bool = False) -> str:
    """The type that will be written. Raises whatever stands against it, before a weight is read."""
    module = _module(target)
    kind = kind or module.DEFAULT
    if kind not in module.TYPES:
        raise BadInput(f"--type {kind}: {target} is written as {', '.join(module.TYPES)}")
    if output.suffix != module.SUFFIX:
        raise BadInput(f"{output}: a file for {target} ends in {module.SUFFIX}")
    try:
        str(output.absolute()).encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"{str(output)!r} is not UTF-8, and the runtimes open no such file"
        ) from None
    for file in (output, mmproj_of(output)) if target == "gguf" else (output,):
        if file.is_dir():
            raise BadInput(f"{file} is a folder; name a file in it")
        if os.path.lexists(file) and not force:
            raise BadInput(
                f"{file} is there already; --force replaces it once the new one is checked"
            )
    if not output.parent.is_dir():
        raise BadInput(f"{output.parent} is no folder to put {output.name} into")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise BadInput(f"no file can be written into {output.parent}: name another folder")
    require(target, *module.NEEDS)
    return str(kind)


def export(
    source: Source,
    target: str,
    kind: str,
    output: Path,
    *,
    context: int = CONTEXT,
    tell: Callable[[str], None] = lambda what: None,
) -> Report:
    """Write `source` for `target`, run it there, and give it its name; `.failed` if it disagrees.

    kind: as `prepare` gave it. context: positions of executorch's caches. Raises BadInput for what
    the target cannot hold.
    """
    module = _module(target)
    if target != "gguf":  # graphs hold language models
        source = replace(source, sight=None)
    folder = Path(tempfile.mkdtemp(prefix=".lfm2-mm-", dir=output.parent))
    try:
        path = folder / output.name
        tell(f"writing {output.name}")
        remarks = module.write(source, path, kind, context)
        files = sorted(folder.iterdir(), key=lambda file: file == path)  # the named one last
        size = sum(file.stat().st_size for file in files)
        tell("running it")
        limits = module.limits(kind)
        runner = module.open_runner(source, path)
        try:
            found = run(source, module.rounded(source, kind), runner, limits)
            ours, theirs = speeds(source, runner)
        finally:
            runner.close()
        judged_as = "logits" if source.kind == "chat" else "vectors"
        sight = source.sight
        of_sight = sight.remarks if sight else filter(None, [source.left_out])
        report = Report(
            output, size, target, kind, runner.runtime, runner.reads, judged_as, found, limits,
            (*of_sight, *remarks, *runner.remarks), ours, theirs,
            mmproj_of(output) if sight else None,
        )  # fmt: skip
        return place(report, files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(source: Source, rounded: Source, runner: Any, limits: Limits) -> tuple[Check, ...]:
    check = checks.check_reader if source.kind == "chat" else checks.check_vectors
    found = tuple(check(source, rounded, runner, limits))
    if source.sight is None:
        return found
    assert rounded.sight is not None
    judge = (rounded.sight, rounded.backbone)
    return found + tuple(check_pictures(source.sight, source.backbone, judge, runner, limits))


def speeds(source: Source, runner: Any) -> tuple[float, float]:
    """Tokens a second, ours in float and theirs: written one by one, or of an encoder, read."""
    ids = checks.prompt_of(source)
    if source.kind == "colbert":
        row = checks.Row.document(ids)
        ours = checks.rate(lambda: source.vectors(row.ids, row.attended, row.convolved), len(ids))
        return ours, checks.rate(lambda: runner.vectors([row]), len(ids))
    reading = source.reader()
    return checks.one_by_one(reading.read, ids), runner.tokens_per_s(ids)


def place(report: Report, files: list[Path]) -> Report:
    """Give the files their final names, the one that is asked for last."""
    behind = "" if report.ok else FAILED
    for file in files:
        os.replace(file, report.path.with_name(file.name + behind))

    def named(path: Path) -> Path:
        return path.with_name(path.name + behind)

    return replace(report, path=named(report.path), mmproj=report.mmproj and named(report.mmproj))


def _module(target: str) -> Any:
    if target not in TARGETS:
        raise BadInput(f"no target {target!r}; known are {', '.join(TARGETS)}")
    return import_module(f"lfm2_mm.exports.to_{target}")
