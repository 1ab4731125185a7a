"""What an index folder and a collection in a store have in common: documents are brought up to
date in runs of one writer, with one encoder that is opened when it is needed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lfm2_mm.errors import BadInput
from retrieval import storage
from retrieval.requirements import checked_meta, require_keeping, require_model
from retrieval.storage import Stamp
from retrieval.types import Info, Progress, Report

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.update import Run
    from retrieval.writer import Keeping

DEFAULT_MODEL = "nano-colbert"


class Holding(ABC):
    """Documents with their vectors, wherever they are kept."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Encoder | None,
        keeping: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self._model = model
        self._keeping = {name: value for name, value in keeping.items() if value is not None}
        self._options = options
        self._encoder: Encoder | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what each place does in its own way -----------------------------------------------------

    @property
    @abstractmethod
    def place(self) -> str | Path:
        """Where it is, as messages say it."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """Where it lies on this machine."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def info(self) -> Info: ...

    @abstractmethod
    def _stamp(self) -> Stamp | None:
        """What made the vectors that are there; None where there are none."""

    @abstractmethod
    def _writing(self, keeping: Keeping) -> AbstractContextManager[Any]:
        """As its only writer."""

    @abstractmethod
    def _tidy(self, writer: Any) -> None:
        """Housekeeping after a run."""

    @abstractmethod
    def _found(self, writer: Any, pattern: str) -> Iterable[str]:
        """The sources that `delete` means by a pattern."""

    # --- changing --------------------------------------------------------------------------------

    def update(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        prune: bool = False,
        meta: Mapping[str, str] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Bring the files in `paths` up to date: what is new or changed is encoded, nothing else.

        prune: forget documents below `paths` whose files vanished. meta: kept with each document of
        `paths`, to filter by. What cannot be read is in the report, and not tried again until it
        changes. Raises BadInput when nothing in `paths` is readable, IndexBusy, LfmError when the
        disk is full.
        """
        from retrieval.update import look, nothing_indexed, update

        roots = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        meta = checked_meta(meta or {})
        files = look(roots, self.folder)
        if not files and not prune:
            raise nothing_indexed(roots, [])
        with self._run(meta, progress) as (run, reported):
            update(run, files, roots, prune=prune)
        report = reported()
        if not (report.added or report.updated or report.removed or report.unchanged):
            raise nothing_indexed(roots, report.skipped)
        return report

    def add_texts(
        self,
        texts: Iterable[tuple[str, str, str]],
        *,
        meta: Mapping[str, str] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Report:
        """Add (source, text, title), or bring those up to date whose text or title changed."""
        from retrieval.update import add_texts

        with self._run(checked_meta(meta or {}), progress) as (run, reported):
            add_texts(run, texts)
        return reported()

    def delete(self, pattern: str | os.PathLike[str]) -> Report:
        """Delete the documents of this source or file name, or where there is none, of a glob
        (`*.pdf`) on either."""
        pattern = os.fspath(pattern)
        if not pattern:
            raise BadInput("an empty source names no document: give one, or '*' for all")
        with self._run({}, None) as (run, reported):
            found = list(self._found(run.writer, pattern))
            if not found:
                raise BadInput(
                    f"no document {pattern!r} in {self.place}: give a source as `search` shows it, "
                    "a file's name, or a pattern such as '*.pdf'"
                )
            for source in found:
                if known := run.writer.known(source):
                    run.writer.remove(known)
        return reported()

    @contextlib.contextmanager
    def _run(
        self, meta: Mapping[str, str], progress: Callable[[Progress], None] | None
    ) -> Iterator[tuple[Run[Any], Callable[[], Report]]]:
        """A run as the only writer; the report can be had once it is over."""
        from retrieval.update import Run
        from retrieval.writer import Keeping

        started = time.monotonic()
        with self._writing(Keeping(**self._keeping)) as writer:
            self.require_settings()  # another writer may have been the first
            run = Run(writer, self.encoder, meta, progress or (lambda _: None))
            yield run, lambda: self._report(run, time.monotonic() - started)
            writer.commit()
            self._tidy(writer)

    def _report(self, run: Run[Any], seconds: float) -> Report:
        held, tally = self.info(), run.writer.tally
        return Report(
            held.documents, held.chunks, held.tokens, held.bytes, added=tally.added,
            updated=tally.updated, removed=tally.removed, unchanged=run.unchanged,
            skipped=tuple(run.skipped), seconds=seconds,
        )  # fmt: skip

    # --- opening ---------------------------------------------------------------------------------

    def encoder(self) -> Encoder:
        """The encoder, opened now if it was not; always the one that made the vectors."""
        with self._opening:
            if self._encoder is None:
                encoder = self._open_encoder()
                if stamp := self._stamp():
                    storage.require_same(self.place, stamp, encoder)
                self._encoder = encoder
            return self._encoder

    def _open_encoder(self) -> Encoder:
        if self._model is not None and not isinstance(self._model, (str, os.PathLike)):
            return self._model
        from retrieval.encoder import open_encoder

        return open_encoder(os.fspath(self._model or self._usual()), **self._options)

    def _usual(self) -> str:
        """The model that made what is there, or the one that comes with the package."""
        stamp = self._stamp()
        return stamp.name if stamp else DEFAULT_MODEL

    def asked(self) -> dict[str, Any]:
        """The model and the settings that this is encoded with, here or elsewhere."""
        stamp = self._stamp()
        kept = {"codec": stamp.codec, "pool": stamp.pool} if stamp else self._keeping
        return {"model": self._model or self._usual(), **kept, **self._options}

    def require_settings(self) -> None:
        """Raise IndexMismatch for another model than made the vectors, BadInput where they are
        kept otherwise."""
        if self._keeping or self._model is not None:
            self._require(self._stamp(), self.place)

    def _require(self, stamp: Stamp | None, place: str | Path) -> None:
        """The same for the stamp of any place."""
        require_keeping(place, stamp, self._keeping)
        if stamp and self._model is not None:
            require_model(place, stamp, self._model, self._options["offline"])
