"""The collections that the search page shows and the files behind them. Knows no browser."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import retrieval
from apps.demos import library
from lfm2_mm.errors import BadInput, IndexDamaged, IndexMismatch, LfmError, NotAvailable
from retrieval import filters

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.index import Index
    from retrieval.recall import Recall
    from retrieval.types import Hit, Info, Mode, Progress, Report, Source

LIBRARY = "Project and packages"
UPLOADS = "Uploaded files"
MOST_FILES = 200  # of one upload


class Closing(LfmError):
    """Stops the work on the library when the page is closed."""


class Shelf:
    """Named indexes over one encoder. The uploads live in a temporary folder and go with it."""

    def __init__(
        self,
        home: Path,
        encoder: Encoder,
        given: Mapping[str, Index] | None = None,
        changing: Mapping[str, threading.Lock] | None = None,
    ) -> None:
        """`home` keeps the library from one start to the next; `given` indexes are shown too.

        changing: who else writes to those holds these.
        """
        self.model = Path(encoder.name).name
        self.temporary = Path(tempfile.mkdtemp(prefix="lfm2-mm-"))
        self.files = self.temporary / "files"
        self.files.mkdir()
        made_by = re.sub(r"[^\w.-]+", "-", encoder.name)
        self._own = {
            LIBRARY: _own(home / f"library-{made_by}.index", encoder),
            UPLOADS: _own(self.temporary / "uploads.index", encoder),
        }
        self.indexes = self._own | dict(given or {})
        # An index has one writer; a second one waits here.
        self.changing = {name: threading.Lock() for name in self.indexes} | dict(changing or {})
        self.preparing = ""  # what the library still waits for; empty when it is ready
        self._closing = threading.Event()
        self._worker = threading.Thread(target=self.prepare)

    def start(self) -> None:
        """Prepare the library in the background."""
        self._worker.start()

    def close(self) -> None:
        self._closing.set()
        if self._worker.is_alive():
            self._worker.join()
        for index in self._own.values():
            index.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def index(self, name: str) -> Index:
        if name not in self.indexes:
            raise BadInput(f"no collection {name!r}; there are {', '.join(self.indexes)}")
        return self.indexes[name]

    def prepare(self) -> None:
        """Bring the library up to date with what is installed; only what changed is encoded."""
        self.preparing = "Reading the installed packages"
        index = self.indexes[LIBRARY]
        try:
            with self.changing[LIBRARY]:
                texts = list(library.texts())
                wanted = {source for source, _, _ in texts}
                for gone in {document.source for document in index.sources()} - wanted:
                    index.delete(gone)
                index.add_texts(texts, progress=self._tell)
            self.preparing = ""
        except LfmError as error:
            self.preparing = f"The library could not be indexed: {error}"

    def _tell(self, step: Progress) -> None:
        if self._closing.is_set():
            raise Closing("the page was closed; the next start goes on from here")
        self.preparing = (
            f"Indexing: {step.files} of {step.of_files} documents, {step.chunks:,} passages so far"
        )

    def upload(
        self, paths: Sequence[str], progress: Callable[[Progress], None] | None = None
    ) -> Report:
        """Take files in; one of a name that is there already replaces it."""
        if len(paths) > MOST_FILES:
            raise BadInput(f"{len(paths)} files at once; at most {MOST_FILES} are taken")
        kept = [shutil.copy(path, self.files / Path(path).name) for path in paths]
        with self.changing[UPLOADS]:
            return self.indexes[UPLOADS].update(kept, progress=progress)

    def search(self, name: str, query: str, k: int, mode: Mode, narrow: str = "") -> list[Hit]:
        """Hits of a collection; `narrow` as in `conditions`."""
        return self.index(name).search(query, k=k, mode=mode, where=conditions(narrow))

    def contents(self, name: str) -> tuple[list[Source], Info]:
        """The documents of a collection and what it holds."""
        return self.index(name).sources(), self.index(name).info()

    def recall(self, name: str) -> Recall:
        """How much of the exact ranking a search of a collection finds; others search meanwhile."""
        return self.index(name).recall()

    def delete(self, name: str, source: str) -> None:
        index = self.index(name)
        with self.changing[name]:
            index.delete(source)
        if name == UPLOADS:
            Path(source).unlink(missing_ok=True)

    def shown(self, source: str) -> str:
        """A source as a person would name it."""
        path = Path(source)
        return path.name if path.is_relative_to(self.files) else source


def conditions(text: str) -> list[tuple[str, str]]:
    """What a person typed as filter: `*.pdf` is a source, `key=value` or `date>=2024` another
    condition."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"the filter {text!r} cannot be read: {error}") from error
    return [filters.condition(word) or ("source", word) for word in words]


def _own(folder: Path, encoder: Encoder) -> Index:
    """An index that can be made again from what it was made of: a stale or damaged one goes."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotAvailable(
            f"the pages keep their library in {folder.parent}: {error.strerror}; set LFM2_MM_HOME "
            "to a folder that can be written"
        ) from error
    try:
        index = retrieval.open(folder, model=encoder, create=True)
        index.info()
        return index
    except (IndexMismatch, IndexDamaged):
        shutil.rmtree(folder)
        return retrieval.open(folder, model=encoder, create=True)
