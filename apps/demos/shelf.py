"""The collections that the search page shows and the files behind them. Knows no browser."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import retrieval
from apps.demos import library
from lfm2_mm.errors import BadInput, IndexDamaged, IndexMismatch, LfmError
from retrieval import documents

if TYPE_CHECKING:
    from retrieval.index import Index

    from retrieval.types import Hit, Info, Mode, Progress, Report, Source

LIBRARY = "Project and packages"
UPLOADS = "Uploaded files"
MOST_FILES = 200  # of one upload
MOST_BYTES = 50_000_000  # of one uploaded file


@dataclass(frozen=True)
class Settings:
    """How the indexes are opened."""

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False


class Shelf:
    """Named indexes. The uploads live in a temporary folder that goes with this object."""

    def __init__(self, home: Path, settings: Settings, extra: Path | None = None) -> None:
        self.settings = settings
        self.temporary = Path(tempfile.mkdtemp(prefix="lfm2-mm-"))
        self.files = self.temporary / "files"
        self.files.mkdir()
        made_by = re.sub(r"[^\w.-]+", "-", settings.model or "default")
        self.places = {
            LIBRARY: home / f"library-{made_by}.index",
            UPLOADS: self.temporary / "uploads.index",
        }
        self.places |= {folder.name: folder for folder in _indexes(extra)}
        self.writing = threading.Lock()  # uploads and deletions of one page, one after the other
        self.preparing = ""  # what the library still waits for; empty when it is ready

    def close(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def open(self, name: str) -> Index:
        """The index of a collection; the page's own two are made when missing."""
        if name not in self.places:
            raise BadInput(f"no collection {name!r}; there are {', '.join(self.places)}")
        mine = name in (LIBRARY, UPLOADS)
        # An index that was made before keeps its model; only a new one takes the page's.
        return retrieval.open(
            self.places[name],
            model=self.settings.model if mine else None,
            create=mine,
            device=self.settings.device,
            dtype=self.settings.dtype,
            offline=self.settings.offline,
        )

    def prepare(self) -> None:
        """Bring the library up to date with what is installed; only what changed is encoded."""
        self.preparing = "reading the installed packages"
        try:
            try:
                self._prepare()
            except (IndexMismatch, IndexDamaged):
                # Only a copy of what is installed: made anew for another model or format.
                shutil.rmtree(self.places[LIBRARY])
                self._prepare()
            self.preparing = ""
        except LfmError as error:
            self.preparing = f"the library could not be indexed: {error}"

    def _prepare(self) -> None:
        with self.writing, self.open(LIBRARY) as index:
            texts = list(library.texts())
            wanted = {source for source, _, _ in texts}
            for gone in {document.source for document in index.sources()} - wanted:
                index.delete(gone)
            index.add_texts(texts, progress=self._tell)

    def _tell(self, step: Progress) -> None:
        self.preparing = f"indexing {step.files} of {step.of_files} documents"

    def upload(
        self, paths: Sequence[str], progress: Callable[[Progress], None] | None = None
    ) -> Report:
        """Take files in; one of a name that is there already replaces it."""
        if len(paths) > MOST_FILES:
            raise BadInput(f"{len(paths)} files at once; at most {MOST_FILES} are taken")
        kept = [shutil.copy2(path, self.files / Path(path).name) for path in paths]
        with self.writing, self.open(UPLOADS) as index:
            return index.update(kept, progress=progress)

    def search(self, name: str, query: str, k: int, mode: Mode, narrow: str = "") -> list[Hit]:
        """Hits of a collection; `narrow` as in `conditions`."""
        where = conditions(narrow)
        with self.open(name) as index:
            return index.search(query, k=k, mode=mode, where=where or None)

    def contents(self, name: str) -> tuple[list[Source], Info]:
        """The documents of a collection and what it holds."""
        with self.open(name) as index:
            return sorted(index.sources(), key=lambda source: source.source), index.info()

    def text(self, name: str, hit: Hit) -> str:
        """The whole document of a hit. Raises BadInput where it is no longer the one indexed."""
        if name == LIBRARY:
            texts = (text for source, text, _ in library.texts() if source == hit.source)
            found = next(texts, "")
        else:
            found = documents.read(Path(hit.source)).text
        if found[hit.start : hit.end] != hit.text:
            raise BadInput(f"{hit.source} has changed since it was indexed: index it again")
        return found

    def delete(self, name: str, source: str) -> None:
        with self.writing, self.open(name) as index:
            index.delete(source)
        if name == UPLOADS:
            Path(source).unlink(missing_ok=True)

    def shown(self, source: str) -> str:
        """A source as a person would name it."""
        path = Path(source)
        return path.name if path.is_relative_to(self.files) else source


def conditions(text: str) -> dict[str, str]:
    """What a person typed as filter: `*.pdf` is a source, `key=value` any other condition."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"the filter {text!r} cannot be read: {error}") from error
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        found |= {key: value} if equals else {"source": word}
    return found


def _indexes(folder: Path | None) -> list[Path]:
    """`folder`, if it is an index; else the indexes in it."""
    if folder is None:
        return []
    if retrieval.is_index(folder):
        return [folder]
    return [inner for inner in sorted(folder.glob("*")) if retrieval.is_index(inner)]
