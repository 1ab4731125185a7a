"""Weights and sidecar files of one checkpoint folder. Knows safetensors and JSON; no network."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_mm.errors import BadInput, CheckpointDamaged

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SIDECARS = (".json", ".jinja")
MAX_JSON = 64 << 20  # bytes; the shard index of the largest checkpoint has two million
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of one tensor."""

    dtype: str  # "F32", "BF16", ...
    shape: tuple[int, ...]
    file: Path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointDamaged when it is missing or is none."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise CheckpointDamaged(f"{path} holds no JSON object; fetch or save the checkpoint again")
    return value


def read_value(path: Path) -> Any:
    """The JSON value in a file. Raises CheckpointDamaged when it is missing or holds none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON + 1)
        if len(content) > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON >> 20} MiB")
        return json.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointDamaged(
            f"{path} cannot be read as JSON: {error}; fetch or save the checkpoint again"
        ) from error


def tensors_of(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of model.safetensors or of its shards, from the headers alone.

    Raises CheckpointDamaged when a file is missing, truncated or not what the shard index says.
    """
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise CheckpointDamaged(_no_weights(folder))
    weight_map = _weight_map(folder)
    found: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        header = _header(folder / shard)
        promised = {key for key, name in weight_map.items() if name == shard}
        if promised != set(header):
            odd = sorted(promised.symmetric_difference(header))[:3]
            raise CheckpointDamaged(
                f"{folder / shard} and {INDEX} do not agree on {', '.join(odd)}"
            )
        found |= header
    return found


def missing_files(folder: Path) -> list[str]:
    """Files without which the folder is no checkpoint: configuration, weights, shards, modules."""
    needed = ["config.json"]
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        needed += sorted(set(_weight_map(folder).values()))
    else:
        needed.append(SINGLE)
    needed += [f"{name}/{SINGLE}" for name in _dense_modules(folder)]
    return [name for name in needed if not (folder / name).is_file()]


def whole(folder: Path) -> Path:
    """`folder` itself, when no file is missing, nor too large for what its name says. Raises
    CheckpointDamaged."""
    for path in folder.iterdir():  # also of those that other libraries read, as a whole
        if path.suffix in SIDECARS and path.is_file() and path.stat().st_size > MAX_JSON:
            raise CheckpointDamaged(
                f"{path} is larger than {MAX_JSON >> 20} MiB, as no such file is; fetch or save "
                "the checkpoint again"
            )
    missing = missing_files(folder)
    if SINGLE in missing and any((folder / name).exists() for name in PICKLES):
        raise CheckpointDamaged(_no_weights(folder))
    if missing:
        raise CheckpointDamaged(
            f"{folder} is not a whole checkpoint, {', '.join(missing)} missing; "
            "fetch or save it again, or name another folder"
        )
    return folder


def tensor_keys(folder: Path) -> list[str]:
    """The names of all tensors, sorted; nothing is loaded."""
    return sorted(tensors_of(folder))


def count_parameters(folder: Path) -> int:
    """Elements of all stored tensors, those of dense modules (1_Dense) included."""
    folders = [folder, *(folder / name for name in _dense_modules(folder))]
    return sum(math.prod(t.shape) for f in folders for t in tensors_of(f).values())


def read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of every weight, one at a time, as stored (dtype, CPU).

    With a prefix, only the keys that start with it, and without it. All headers are checked before
    the first tensor is read. Raises CheckpointDamaged.
    """
    files: dict[Path, list[str]] = {}
    for key, info in tensors_of(folder).items():
        if key.startswith(prefix):
            files.setdefault(info.file, []).append(key)
    for path, keys in files.items():
        for key, tensor in _tensors(path, keys):
            yield key.removeprefix(prefix), tensor


def read_file(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of the wanted weights of one safetensors file of any name, as stored.

    The header is checked first. Raises CheckpointDamaged.
    """
    yield from _tensors(path, [key for key in _header(path) if wanted(key)])


def _tensors(path: Path, keys: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            for key in keys:
                yield key, tensors.get_tensor(key)
    except SafetensorError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error}") from error


def write(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    files: Mapping[str, bytes | str | Mapping[str, Any] | list[Any]] | None = None,
) -> Path:
    """Save model.safetensors, config.json and other `files` (relative name -> content) as `folder`.

    A new folder is filled beside it and takes its place at the end, so a crash leaves the old
    checkpoint or the new one. What `folder` held before is gone afterwards; raises BadInput when
    that was not a checkpoint.
    """
    from safetensors.torch import save_file

    folder = Path(folder).absolute()
    ours = (folder / "config.json").is_file() or not folder.exists()
    if not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} holds something else than a checkpoint; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in {"config.json": dict(config), **(files or {})}.items():
            _write_file(fresh, name, content)
        plain = {key: t.detach().contiguous().cpu() for key, t in tensors.items()}
        save_file(plain, fresh / SINGLE, metadata={"format": "pt"})
        (fresh / SINGLE).chmod(0o644)  # safetensors and mkdtemp make them private to the user
        fresh.chmod(0o755)
        _take_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _take_place(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; a full folder cannot be replaced, so the old one steps aside."""
    if not folder.exists():
        os.replace(fresh, folder)
        return
    aside = fresh.with_name(fresh.name + ".old")
    os.replace(folder, aside)
    try:
        os.replace(fresh, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)


def _write_file(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="\n")
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")


def _header(path: Path) -> dict[str, TensorInfo]:
    """The checked header of one safetensors file: 8 bytes length, JSON, then the tensors' bytes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(MAX_HEADER, size - 8):
                raise CheckpointDamaged(_cut_off(path, f"{size} bytes, header of {length}"))
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        found = {k: TensorInfo(e["dtype"], tuple(e["shape"]), path) for k, e in entries.items()}
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"{path} is no safetensors file ({error})") from error
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        raise CheckpointDamaged(_cut_off(path, f"{size} bytes of {promised}"))
    return found


def _cut_off(path: Path, figures: str) -> str:
    return f"{path} is damaged or was cut off ({figures}); fetch or save it again"


def _no_weights(folder: Path) -> str:
    if any((folder / name).exists() for name in PICKLES):
        return (
            f"{folder} holds {PICKLES[0]} only, which can run code when opened and is not opened "
            "here; save it as safetensors first"
        )
    return f"{folder} holds no {SINGLE} and no {INDEX}; fetch or save the checkpoint again"


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> shard, from the shard index; a shard lies in the folder itself."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointDamaged(f"{folder / INDEX} has no weight_map; fetch the checkpoint again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _plain_name(shard):
            raise CheckpointDamaged(
                f"{folder / INDEX} names {shard!r} as a shard, which is not a file of this folder"
            )
    return weight_map


def _plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _dense_modules(folder: Path) -> list[str]:
    """Folders of the projections in modules.json of sentence-transformers or PyLate, if any."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return []
    rows = read_value(modules)
    try:
        names = [str(row["path"]) for row in rows if str(row["type"]).endswith("Dense")]
    except (KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{modules} cannot be read: {error!r}") from error
    if not all(map(_plain_name, names)):
        raise CheckpointDamaged(f"{modules} names a folder outside of the checkpoint: {names}")
    return names
