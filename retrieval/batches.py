"""A batch of files encoded into one segment folder, by a job that any scheduler may run and rerun.

The folder is an index of its own with a single segment. Its name follows from what is in it, and it
appears by one rename, so running a job twice, or on two machines, makes one folder. Knows no
scheduler: where jobs run, and which files go together, others decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lfm2_mm.errors import BadInput, IndexBusy, IndexDamaged, IndexMismatch, IndexMissing
from retrieval import seal, storage
from retrieval.catalog import Catalog
from retrieval.codecs import DEFAULT
from retrieval.compact import groups, merge
from retrieval.files import path_of
from retrieval.holding import DEFAULT_MODEL
from retrieval.index import Index
from retrieval.index import open as open_index
from retrieval.requirements import checked_meta
from retrieval.rows import Known, NewDocument
from retrieval.segments import Segment
from retrieval.storage import Manifest, Stamp
from retrieval.types import Batch, Progress, Skipped
from retrieval.update import File, NothingIndexed, Run, digest, keep, look, nothing_indexed
from retrieval.writer import Keeping, Writer, writing

if TYPE_CHECKING:
    from retrieval.encoder import Encoder


def encode_segment(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    into: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Encoder = DEFAULT_MODEL,
    codec: str | None = None,
    pool: int | None = None,
    meta: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    empty: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Batch:
    """Encode a batch of files (or folders) into a segment folder below `into`; see `Index.attach`.

    Idempotent: the folder is called by a hash of the files' names and contents, the model and the
    settings. Where it is there already nothing is encoded, and no model loaded. Any number of
    workers may run the same job: each works in a hidden folder of its own, the first to finish
    renames it. A job that was killed leaves such a folder, and the next one goes on with it.
    Machines that share `into` need file locks that hold between them (NFS has some); where there
    are none, give each an `into` of its own.

    model, codec, pool, device, dtype, offline: as in `retrieval.open`; meta: kept with each
    document; empty: a batch in which nothing can be read becomes a folder too. Raises BadInput
    where nothing can be read or a file changes meanwhile, LfmError where the disk is full.
    """
    root = Path(into).expanduser()
    if os.path.lexists(root) and not root.is_dir():
        raise BadInput(f"{root} is no folder: name one for the segments")
    roots = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found = look(roots, root)
    if not found:
        raise nothing_indexed(roots, [])
    job = _job(found, codec, pool, meta, empty=empty)
    keeping = job.keeping
    name = job.name(_fingerprint(model, offline=offline))

    def encode(folder: Path) -> None:
        with open_index(
            folder, model=model, create=True, codec=keeping.codec, pool=keeping.pool,
            device=device, dtype=dtype, offline=offline,
        ) as made:  # fmt: skip
            job.fill(made, progress)

    if not (root / name).exists():
        _publish(encode, root, name)
    return _told(root / name)


def segment_name(
    files: Sequence[File],
    model: str | os.PathLike[str] | Encoder,
    *,
    codec: str | None = None,
    pool: int | None = None,
    meta: Mapping[str, str] | None = None,
    offline: bool = False,
) -> str:
    """What `encode_segment` will call the folder of these files; each is read once."""
    return _job(files, codec, pool, meta).name(_fingerprint(model, offline=offline))


def _job(
    files: Sequence[File], codec: str | None, pool: int | None, meta: Mapping[str, str] | None,
    *, empty: bool = False,
) -> _Job:  # fmt: skip
    keeping = Keeping(codec or DEFAULT, 1 if pool is None else pool)
    digests = {file.source: _digest(file.path) for file in files}
    paths = [file.path for file in files]
    return _Job(paths, digests, keeping, checked_meta(meta or {}), empty)


@dataclass(frozen=True)
class _Job:
    """What goes into a segment folder."""

    paths: Sequence[Path]
    digests: Mapping[str, str]  # source -> sha256 of the file; "" where it could not be read
    keeping: Keeping
    meta: Mapping[str, str]
    empty: bool  # whether a folder without documents is as good as any

    def name(self, fingerprint: str) -> str:
        """The same for the same files, model and settings, wherever and whenever."""
        parts = {
            "format": storage.VERSION, "model": fingerprint, "keeping": asdict(self.keeping),
            "meta": self.meta, "files": self.digests,
        }  # fmt: skip
        told = json.dumps(parts, sort_keys=True).encode()
        return f"segment-{hashlib.sha256(told).hexdigest()[:32]}"

    def fill(self, index: Index, progress: Callable[[Progress], None] | None) -> None:
        """Encode what is not in the index yet, and leave one segment."""
        reasons = {}
        try:
            report = index.update(self.paths, meta=self.meta, progress=progress)
            reasons = {one.path: one.why for one in report.skipped}
        except NothingIndexed:
            if not self.empty:
                raise
        with writing(index.folder, index.encoder) as writer:
            told = {one.source for one in writer.catalog.unreadable()}
            for source, sha256 in self.digests.items():
                known = writer.known(source)
                if sha256 != (known.sha256 if known else _digest(path_of(source))):
                    raise BadInput(f"{source} changed while it was encoded: run the job again")
                if not known and source not in told:
                    writer.skip(source, -1, 0, reasons.get(source, "cannot be read"))
            merge(writer, groups(writer.manifest.segments, sys.maxsize))
            if not writer.manifest.generation:
                writer.put(writer.manifest)


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError:
        return ""


def _fingerprint(model: str | os.PathLike[str] | Encoder, *, offline: bool) -> str:
    if not isinstance(model, (str, os.PathLike)):
        return model.fingerprint
    from retrieval.encoder import fingerprint_of

    return fingerprint_of(os.fspath(model), offline=offline)


def _publish(encode: Callable[[Path], None], root: Path, name: str) -> None:
    """Let `encode` fill a hidden folder and name it; one that is there before is as good."""
    root.mkdir(parents=True, exist_ok=True)
    target = root / name
    for folder in [*_left(root, name), root / f".{name}.{uuid.uuid4().hex[:8]}"]:
        with _alone(folder) as ours:
            if ours and not target.exists():
                _fill(encode, folder)
                with contextlib.suppress(FileExistsError):
                    _rename(folder, target)
        if target.exists():
            break
    for folder in _left(root, name):  # of killed workers, and of one that came too late
        with _alone(folder) as ours:
            if ours:
                shutil.rmtree(folder, ignore_errors=True)


def _left(root: Path, name: str) -> list[Path]:
    """Where others work on a segment, or worked until they were killed."""
    return sorted(root.glob(f".{name}.{'[0-9a-f]' * 8}"))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else works in a folder; nobody will while this lasts."""
    lock = FileLock(f"{folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if not folder.exists():
            with contextlib.suppress(PermissionError):  # Windows removes it by itself
                Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _fill(encode: Callable[[Path], None], folder: Path) -> None:
    try:
        encode(folder)
    except BadInput:  # another run would begin with other files; whatever else stops it can go on
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _rename(folder: Path, target: Path) -> None:
    """Raises FileExistsError where another worker was quicker."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(target) from error
        raise
    storage.flush_folder(target.parent)


def _told(folder: Path) -> Batch:
    with _opened(folder) as (manifest, catalog):
        skipped = tuple(Skipped(one.source, one.why) for one in catalog.unreadable())
        return Batch(folder, manifest.documents, manifest.chunks, manifest.tokens, skipped)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[Manifest, Catalog]]:
    """The published state of a segment folder and what it says of its documents."""
    if storage.state_of(folder) != "index":
        raise IndexMissing(
            f"{folder} is no segment folder: `encode_segment` or `lfm2-mm encode` makes one"
        )
    manifest = storage.load(folder)
    seal.require_same(folder)
    with contextlib.closing(Catalog(folder, reads=True)) as catalog, catalog.transaction():
        if not catalog.purged() <= manifest.generation <= catalog.last():
            raise IndexBusy(f"{folder} is being written to: attach it when that is done")
        yield manifest, catalog


def stamp_of(folder: Path, index: Path) -> Stamp | None:
    """What made the vectors of a segment folder that is to be attached to `index`."""
    if os.path.realpath(folder) == os.path.realpath(index):
        raise BadInput(f"{folder} cannot be attached to itself")
    with _opened(folder) as (manifest, _):
        return manifest.stamp


def attach(run: Run[Writer], folder: Path) -> None:
    """Bring a segment folder's documents into the index that `run` writes, in one publication."""
    writer = run.writer
    with _opened(folder) as (theirs, catalog):
        if theirs.stamp:
            _require_alike(run, folder, theirs.stamp)
        for entry in theirs.segments if theirs.stamp else ():
            held = catalog.held(entry.first, entry.last, theirs.generation)
            taken = list(_wanted(run, folder, catalog, [document for document, _, _ in held]))
            assert theirs.stamp is not None
            writer.adopt(theirs.stamp, Segment(folder, entry, theirs.stamp.dim), taken)
        for one in catalog.unreadable():
            writer.skip(one.source, one.size, one.mtime_ns, one.why)
            run.skipped.append(Skipped(one.source, one.why))
    writer.commit()


def _require_alike(run: Run[Writer], folder: Path, theirs: Stamp) -> None:
    """Vectors of two models, or kept in two ways, must not come together."""
    ours = run.writer.manifest.stamp or theirs
    for name in ("fingerprint", "dim", "codec", "pool"):
        here, there = getattr(ours, name), getattr(theirs, name)
        if here != there:
            told = (ours.name, theirs.name) if name == "fingerprint" else (here, there)
            raise IndexMismatch(
                f"{folder} was made with {'model' if name == 'fingerprint' else name} {told[1]}"
                f" ({str(there)[:8]}), {run.writer.folder} with {told[0]} ({str(here)[:8]}): "
                "encode its files again as the index has it"
            )


def _wanted(
    run: Run[Writer], folder: Path, catalog: Catalog, documents: Sequence[int]
) -> Iterator[tuple[NewDocument, Known | None]]:
    """Those documents that the index lacks or has in another state, and what they replace."""
    for document in documents:
        new = catalog.whole(document)
        if new is None:
            raise IndexDamaged(
                f"{folder}: document {document} is not as it was written: remove the folder and "
                "encode its files again"
            )
        run.advance(files=run.progress.files + 1, source=new.source)
        known = run.writer.known(new.source)
        if known and known.sha256 == new.sha256:
            keep(run, known, new.size, new.mtime_ns, new.meta)
        else:
            meta = run.writer.catalog.meta(known.id) if known else {}
            yield replace(new, meta={**meta, **new.meta}), known
