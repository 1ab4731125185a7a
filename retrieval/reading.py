"""The last published state of an index folder, held open for reading. Knows no encoder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from lfm2_mm.errors import IndexBusy, IndexDamaged, IndexMissing
from retrieval import seal, storage
from retrieval.catalog import Catalog, lost_manifest
from retrieval.ranking import UNSEEN, View
from retrieval.segments import Segment
from retrieval.storage import CATALOG, MANIFEST, Manifest

ATTEMPTS = 10  # to catch a moment between two publications


class Reader:
    """Threads may share it. `accept` is given each newly published manifest, and may raise."""

    def __init__(self, folder: Path, accept: Callable[[Manifest], None]) -> None:
        self.folder = folder
        self._accept = accept
        self._view = UNSEEN
        self._catalog: Catalog | None = None
        self._place: tuple[int, ...] = ()  # identity of the catalog's file
        self._reading = threading.RLock()

    def close(self) -> None:
        """Let go of the files; they are opened anew when needed."""
        with self._reading:
            if self._catalog:
                self._catalog.close()
            self._catalog, self._view = None, UNSEEN

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[View]:
        """One published state of vectors and rows, for as long as it is held."""
        with self._reading:
            for _ in range(ATTEMPTS):
                view = self.refreshed()
                if not view.manifest.generation:
                    yield view
                    return
                if self._catalog and self._catalog.overtaken():
                    self._catalog.close()
                    self._catalog = None
                catalog = self.catalog()
                with catalog.transaction():
                    if catalog.purged() <= view.manifest.generation <= catalog.last():
                        yield view
                        return
                # A writer may have replaced what this state names since the manifest was read.
                if _identity(self.folder / MANIFEST) == view.seen:
                    raise self.damaged(f"{MANIFEST} and {CATALOG} are of two states")
            raise self._busy()

    def refreshed(self) -> View:
        """The last published state; segments that are already open stay so."""
        with self._reading:
            for _ in range(ATTEMPTS):
                seen = _identity(self.folder / MANIFEST)
                if seen == self._view.seen:
                    return self._view
                try:
                    manifest = self._manifest()
                    self._view = View(manifest, seen, self._opened(manifest))
                    return self._view
                except (FileNotFoundError, IndexDamaged) as error:
                    if seen != _identity(self.folder / MANIFEST):
                        continue  # a writer published without this file
                    if isinstance(error, IndexDamaged):
                        raise
                    raise self.damaged(f"{error.filename} is missing") from None
            raise self._busy()

    def catalog(self) -> Catalog:
        """The catalog; its file was compared with its checksums when it was opened."""
        place = _identity(self.folder / CATALOG)[:1]
        if self._catalog and place != self._place:  # `repair` put another one there
            self._catalog.close()
            self._catalog = None
        if self._catalog is None:
            seal.require_same(self.folder)
            self._catalog, self._place = Catalog(self.folder, reads=True), place
        return self._catalog

    def damaged(self, what: str) -> IndexDamaged:
        return IndexDamaged(
            f"{self.folder}: {what}; `lfm2-mm check --index {self.folder}` tells more, "
            "`repair` mends it"
        )

    def _busy(self) -> IndexBusy:
        return IndexBusy(f"{self.folder} changes faster than it can be read; try again")

    def _manifest(self) -> Manifest:
        manifest = storage.load(self.folder)
        if not manifest.generation and self._view.manifest.generation and not self.folder.exists():
            raise IndexMissing(f"the index that was at {self.folder} is no longer there")
        if not manifest.generation and lost_manifest(self.folder):
            raise storage.without_manifest(self.folder)
        self._accept(manifest)
        return manifest

    def _opened(self, manifest: Manifest) -> tuple[Segment, ...]:
        there = {(s.entry.name, s.entry.dead): s for s in self._view.segments}
        dim = manifest.stamp.dim if manifest.stamp else 0
        return tuple(
            there.get((entry.name, entry.dead)) or Segment(self.folder, entry, dim)
            for entry in manifest.segments
        )


def _identity(path: Path) -> tuple[int, ...]:
    """Tells one state of a file from the next without reading it; () where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
