"""What this installation has, what was chosen and why, and what is missing for what."""

from __future__ import annotations

import platform
import shutil
import sqlite3
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from apps.screen import Screen, plain, size

EXTRAS = {
    "gradio": "serves the search page (`lfm2-mm demo`)",
    "pylate": "opens other late-interaction checkpoints (BERT, ModernBERT)",
    "lancedb": "keeps collections in LanceDB (`--store lancedb:`)",
    "qdrant-edge-py": "keeps collections in Qdrant's engine (`--store qdrant:FOLDER`)",
    "qdrant-client": "reaches a Qdrant server (`--store qdrant:http://`)",
    "ray": "encodes on a cluster (`index --ray`)",
    "xllamacpp": "runs GGUF files (`chat --engine gguf`, `export --to gguf`)",
    "gguf": "writes and reads GGUF files",
    "onnxruntime": "runs ONNX graphs (`export --to onnx`)",
    "openvino": "runs OpenVINO's (`export --to openvino`)",
    "executorch": "runs ExecuTorch's (`export --to executorch`)",
    "pytest": "runs the tests",
    "playwright": "runs the browser tests",
}
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ROOM = 2e9  # bytes that a small checkpoint takes


@dataclass(frozen=True)
class Check:
    """One finding. `ok` is False where something required is broken."""

    name: str
    ok: bool
    detail: str


def doctor(args: Namespace, screen: Screen) -> int:
    """Show every finding; exit code 1 where something required is broken."""
    found = list(checks(args.device, args.dtype))
    record = {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in found]}
    wide = max(len(check.name) for check in found)
    lines = [f"{'ok ' if c.ok else 'BAD'} {c.name.ljust(wide)}  {plain(c.detail)}" for c in found]
    screen.result(record, lines)
    return 0 if all(check.ok for check in found) else 1


def checks(device: str = "auto", dtype: str = "auto") -> Iterator[Check]:
    """All findings, in the order a person would ask for them."""
    yield _python()
    yield from _packages()
    yield from _extras()
    yield _fts5()
    yield _processor()
    yield _guarded("torch build", _torch_build)
    yield _guarded("device", lambda: _device(device, dtype))
    yield _guarded("checkpoints", _checkpoints)
    yield _guarded("cache", _cache)


def _guarded(name: str, look: Callable[[], str]) -> Check:
    """A look that fails is itself a finding: the other checks still run."""
    try:
        return Check(name, True, look())
    except Exception as error:  # noqa: BLE001
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> Check:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    detail = f"{platform.python_version()} on {platform.platform()}"
    return Check("python", ok, detail + ("" if ok else "; 3.11 to 3.13 are known to work"))


def _packages() -> Iterator[Check]:
    """The required packages against the ranges that the distribution declares."""
    from packaging.requirements import Requirement

    try:
        declared = requires("lfm2-mm") or []
    except PackageNotFoundError:
        yield Check("packages", True, "not checked: lfm2-mm runs from a source tree, uninstalled")
        return
    for line in declared:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield _package(need.name, need)


def _package(name: str, need: object) -> Check:
    wanted = str(getattr(need, "specifier", "")) or "any version"
    try:
        have = version(name)
    except PackageNotFoundError:
        return Check(name, False, f"missing; pip install '{need}'")
    ok = need.specifier.contains(have, prereleases=True)  # type: ignore[attr-defined]
    return Check(name, ok, have if ok else f"{have}, outside of {wanted}; pip install '{need}'")


def _extras() -> Iterator[Check]:
    for name, purpose in EXTRAS.items():
        try:
            yield Check(f"{name} (optional)", True, f"{version(name)}; {purpose}")
        except PackageNotFoundError:
            yield Check(f"{name} (optional)", True, f"not installed; {purpose}")


def _fts5() -> Check:
    try:
        with sqlite3.connect(":memory:") as db:
            db.execute("create virtual table t using fts5(x)")
    except sqlite3.OperationalError as error:
        return Check("sqlite", False, f"{sqlite3.sqlite_version} without FTS5 ({error})")
    return Check("sqlite", True, f"{sqlite3.sqlite_version} with FTS5, for lexical search")


def _processor() -> Check:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return Check("processor", True, platform.processor() or platform.machine())
    fields = dict(
        line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    have = ", ".join(name for name in FEATURES if name in flags) or "none of " + ", ".join(FEATURES)
    return Check("processor", True, f"{fields.get('model name', platform.machine())}: {have}")


def _torch_build() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.__version__}, {torch.cuda.get_device_name()}"
    if torch.version.cuda:
        return (
            f"{torch.__version__} was built for CUDA {torch.version.cuda} and there is no such "
            "device: it works; torch's CPU build needs several GB less of disk"
        )
    return f"{torch.__version__}, for the CPU"


def _device(device: str, dtype: str) -> str:
    from lfm2_mm.device import choose

    chosen = choose(device, dtype)
    return f"{chosen.device}, {chosen.weights}, {chosen.threads} threads: {chosen.reason}"


def _checkpoints() -> str:
    from lfm2_mm import checkpoint, registry

    bundled = [known.name for known in registry.TABLE if known.bundled]
    for name in bundled:
        checkpoint.locate(name, offline=True)  # raises where its files are not all there
    cached = [entry.name for entry in checkpoint.cached()]
    chat = {known.name for known in registry.TABLE if known.kind == "chat"}
    advice = "" if chat & {*bundled, *cached} else "; for chat: `lfm2-mm fetch LFM2-350M`"
    return f"bundled: {_names(bundled)}; cached: {_names(cached)}{advice}"


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _cache() -> str:
    from lfm2_mm.checkpoint import settings

    folder = settings().cache
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    room = "" if free > ROOM else f"; a small checkpoint takes about {size(ROOM)}"
    return f"{folder}: {size(free)} free{room}"
