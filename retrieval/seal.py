"""catalog.sums: checksums of the catalog's file as the last writer left it. Knows bytes only.

A writer removes it before its first change and writes it anew when all its changes are in the file,
so where it is, the file holds exactly what was written.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lfm2_mm.errors import IndexDamaged
from retrieval.storage import CATALOG, SUMS, flush_folder, read_sealed, write_sealed
from retrieval.types import Damage

BLOCK = 64 << 10  # bytes under one checksum


def is_sealed(folder: Path) -> bool:
    return (folder / SUMS).exists()


def seal(folder: Path) -> None:
    """Write down the catalog's file; its journal must be empty and nobody write to it."""
    sums = list(_sums(folder / CATALOG))
    size = (folder / CATALOG).stat().st_size
    write_sealed(folder / SUMS, {"bytes": size, "block": BLOCK, "crc32": sums})


def unseal(folder: Path) -> None:
    """The catalog's file is about to change; durable before it does."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / SUMS)
        flush_folder(folder)


def compare(folder: Path) -> Damage | None:
    """The first difference, or None where all is as it was written or nothing was written down."""
    while True:
        before = _identity(folder)
        found = _difference(folder) if before else None
        if found is None or _identity(folder) == before:  # else a writer began meanwhile
            return found


def require_same(folder: Path) -> None:
    """Raise IndexDamaged unless the catalog's file is as it was written, as far as is known."""
    if damage := compare(folder):
        raise IndexDamaged(
            f"{folder / damage.file} {damage.what}: `lfm2-mm check --index {folder}` tells what "
            "else is damaged, `repair` mends it"
        )


def _difference(folder: Path) -> Damage | None:
    try:
        told = read_sealed(folder / SUMS)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Damage(SUMS, str(error))
    return _compared(folder / CATALOG, told)


def _compared(path: Path, told: dict[str, Any]) -> Damage | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return Damage(CATALOG, "is missing")
    if size != told["bytes"]:
        return Damage(CATALOG, f"has {size} bytes; {told['bytes']} were written")
    for number, (found, written) in enumerate(zip(_sums(path), told["crc32"], strict=True)):
        if found != written:
            return Damage(CATALOG, f"does not fit its checksum at byte {number * BLOCK:,}")
    return None


def _sums(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield zlib.crc32(block)


def _identity(folder: Path) -> tuple[int, ...] | None:
    try:
        stat = (folder / SUMS).stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
