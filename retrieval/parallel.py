"""Bring files up to date with many workers: encode shards, commit them in order, once.

Knows no processes and no cluster. The commit is `attach`, so a run that was stopped anywhere is
gone on with by the next one, and what is encoded stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lfm2_mm.errors import BadInput, IndexBusy
from retrieval import shards
from retrieval.requirements import checked_meta
from retrieval.shards import Settings, Workers
from retrieval.types import Progress, Report
from retrieval.update import look, nothing_indexed

if TYPE_CHECKING:
    from retrieval.index import Index
    from retrieval.stores.collection import Collection


def update(
    target: Index | Collection,
    paths: Iterable[str | os.PathLike[str]],
    workers: Callable[[Settings], Workers],
    parts: Path,
    *,
    prune: bool = False,
    meta: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """As `Index.update`, by the workers that `workers` starts if there is something to encode.

    parts: a folder for the shards, the same on all machines that work; it goes when they are in.
    Raises what a worker raised, and IndexBusy where another run has the folder; the next run goes
    on.
    """
    roots = list(paths)
    files = look(roots, target.folder)
    if not files and not prune:
        raise nothing_indexed(roots, [])
    if any(Path(os.path.realpath(parts)) in Path(file.source).parents for file in files):
        raise BadInput(f"{parts} lies among the files to index: name another folder for the parts")
    meta = checked_meta(meta or {})
    settings = Settings(str(parts), meta=tuple(meta.items()), **target.asked())
    with _alone(parts):
        new = target.changed(files)
        cut = list(shards.cut(new, settings))
        total = sum(shard.bytes for shard in cut)

        def tell(done: int, name: str) -> None:
            if progress:
                progress(Progress(0, len(new), done, total, 0, 0, name))

        folders = shards.run(cut, settings, lambda: workers(settings), tell)
        added = target.attach(folders) if folders else None
        shards.remove(folders)
    # Whatever changed meanwhile, what vanished, and the metadata of what was there.
    report = target.update(roots, prune=prune, meta=meta, progress=progress)
    if added is None:
        return report
    return replace(
        report,
        added=report.added + added.added,
        updated=report.updated + added.updated,
        unchanged=report.unchanged - added.added - added.updated,
        seconds=report.seconds + added.seconds,
    )


@contextlib.contextmanager
def _alone(parts: Path) -> Iterator[None]:
    """Be the only run that uses a folder of parts. The lock ends with the process."""
    parts.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{parts}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise IndexBusy(f"another run encodes into {parts}: wait, or name another folder") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
