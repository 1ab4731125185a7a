"""The index folder: a manifest published by one rename, a lock for the one writer. Knows no text.

manifest.json is the only truth about which generation exists; docs/index-format.md tells the rest.
What is written as JSON carries a seal, so that a flipped bit is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from lfm2_mm.errors import BadInput, IndexBusy, IndexDamaged, IndexMismatch, IndexMissing

VERSION = 2
MANIFEST = "manifest.json"
LOCK = "lock"
CATALOG = "catalog.sqlite"
SUMS = "catalog.sums"
SEGMENTS = "segments"
OURS = (MANIFEST, LOCK, SEGMENTS, SUMS)  # and CATALOG with its journals, and what is half written
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Stamp:
    """Which encoder made the vectors, and how they are kept. Vectors of two encoders must never be
    compared."""

    name: str
    fingerprint: str
    dim: int
    codec: str  # of new segments
    pool: int  # vectors of a passage that become one


@dataclass(frozen=True)
class Part:
    """One file of a segment."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One immutable segment: `chunks` passages and `tokens` vectors, some of them perhaps dead.

    Its ids lie in first..last, where no other segment has any. dead: ranges (id, id after the last)
    of deleted passages, apart and in order.
    """

    name: str
    codec: str
    first: int
    last: int
    chunks: int
    tokens: int
    parts: Mapping[str, Part]  # file name within the segments folder
    dead: tuple[tuple[int, int], ...] = ()

    @property
    def live(self) -> int:
        """Passages that are not deleted."""
        return self.chunks - sum(last - first for first, last in self.dead)

    def without(self, ranges: list[tuple[int, int]]) -> Entry:
        """The same segment with more passages dead."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.dead, *ranges]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return replace(self, dead=tuple(merged))


@dataclass(frozen=True)
class Manifest:
    """One published state of an index."""

    generation: int = 0  # 0: nothing was ever published
    stamp: Stamp | None = None
    documents: int = 0  # live
    chunks: int = 0
    tokens: int = 0
    next_id: int = 1  # of the next passage; ids are never given twice
    next_segment: int = 1
    segments: tuple[Entry, ...] = field(default=())
    effort: int | None = None  # passages that a search scores exactly; None: its own choice


def state_of(folder: Path) -> str:
    """'missing', 'foreign' (something else lies there), 'unpublished' or 'index'."""
    if not os.path.lexists(folder):
        return "missing"
    if not folder.is_dir():  # a link that leads nowhere is in the way, too
        return "foreign"
    names = [path.name for path in folder.iterdir()]
    if MANIFEST in names:
        return "index"
    ours = all(name.removesuffix(TEMPORARY) in OURS or name.startswith(CATALOG) for name in names)
    return "unpublished" if ours else "foreign"


def require(folder: Path, *, create: bool) -> None:
    """Raise unless `folder` is an index, or may become one."""
    match state_of(folder):
        case "missing" if not create:
            raise IndexMissing(
                f"no index at {folder}: make one with `lfm2-mm index PATH --index {folder}`"
            )
        case "foreign" if create:
            raise BadInput(f"{folder} exists and is no index: name a new or an empty folder")
        case "foreign":
            raise IndexMissing(
                f"{folder} is no index (no {MANIFEST} in it): "
                "make one elsewhere with `lfm2-mm index PATH --index NEW_FOLDER`"
            )


def load(folder: Path) -> Manifest:
    """The published state. Raises IndexDamaged, or IndexMismatch for one of another version."""
    try:
        raw = read_sealed(folder / MANIFEST)
    except FileNotFoundError:
        return Manifest()
    except ValueError as error:
        raise _damaged(folder, str(error)) from error
    return _from_json(raw)


def write_sealed(path: Path, raw: dict[str, Any]) -> bytes:
    """Replace a JSON file in one step, durably; what was written."""
    raw = {"format": "lfm2-mm index", "version": VERSION, **raw}
    raw = json.loads(json.dumps(raw))  # tuples become lists: the seal must see what a reader sees
    content = json.dumps({**raw, "seal": _seal(raw)}, indent=1).encode()
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        flush(file)
    os.replace(temporary, path)
    flush_folder(path.parent)
    return content


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of `write_sealed`. Raises ValueError where it is not as it was written,
    IndexMismatch where another version wrote it."""
    try:
        with path.open("rb") as file:
            if (first := file.read(1)) != b"{":  # before a file of whatever size is read
                raise ValueError("it is no JSON object")
            raw = json.loads(first + file.read())
        version, seal = raw["version"], raw.pop("seal")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    sound = seal == _seal(raw)
    # A newer version may seal in another way; an unsound older one is just damaged.
    if isinstance(version, int) and (version > VERSION or (sound and version < VERSION)):
        raise _other_version(path.parent, version)
    if not sound:
        raise ValueError("does not fit its own checksum")
    del raw["format"], raw["version"]
    return raw


def _other_version(folder: Path, version: int) -> IndexMismatch:
    made = "a newer" if version > VERSION else "an older"
    advice = "upgrade lfm2-mm, or index" if version > VERSION else "index"
    return IndexMismatch(
        f"{folder} has format {version}, made by {made} lfm2-mm; this one reads {VERSION}: "
        f"{advice} again into a new folder"
    )


class Stamped(Protocol):
    """What a stamp is compared with: an encoder, or another stamp."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def require_same(folder: object, stamp: Stamp, model: Stamped) -> None:
    """Raise IndexMismatch unless `model` is the one that made the vectors."""
    if stamp.fingerprint == model.fingerprint:
        return
    made, given = stamp.fingerprint[:8], model.fingerprint[:8]
    raise IndexMismatch(
        f"{folder} was made with {stamp.name} (fingerprint {made}), not with {model.name} as it is "
        f"now ({given}): open it with the model that made it, or index again into a new folder"
    )


def publish(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the state of the index, in one step; what it names is durable already."""
    write_sealed(folder / MANIFEST, asdict(manifest))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the index as its only writer. The lock is the system's: it ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise IndexBusy(
            f"another process is writing to {folder}: try again when it is done; "
            "searching works meanwhile"
        ) from None
    try:
        yield
    finally:
        lock.release()


def flush(file: Any) -> None:
    """Everything written to `file` is on the disk afterwards."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """New and renamed entries of `folder` are on the disk afterwards; Windows does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def bytes_of(folder: Path) -> int:
    """Size of all files of the index; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def entry_of(raw: dict[str, Any]) -> Entry:
    """An entry from its JSON."""
    parts = {name: Part(**part) for name, part in raw["parts"].items()}
    dead = tuple((first, last) for first, last in raw["dead"])
    return Entry(**{**raw, "parts": parts, "dead": dead})


def _from_json(raw: dict[str, Any]) -> Manifest:
    stamp = Stamp(**raw["stamp"]) if raw["stamp"] else None
    return Manifest(**{**raw, "stamp": stamp, "segments": tuple(map(entry_of, raw["segments"]))})


def _seal(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def without_manifest(folder: Path) -> IndexDamaged:
    """The error for a folder whose catalog tells that a manifest was here."""
    return _damaged(folder, "is missing")


def _damaged(folder: Path, what: str) -> IndexDamaged:
    return IndexDamaged(
        f"{folder / MANIFEST} {what}: `lfm2-mm repair --index {folder}` mends what can be mended"
    )
