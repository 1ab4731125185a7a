"""Files and given texts -> documents for the writer: what is new, changed, unreadable, vanished."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lfm2_mm.errors import BadInput, Unreadable
from retrieval.documents import Document, cut, find_files, read, source_of
from retrieval.files import open_regular, path_of, printable, vanished
from retrieval.rows import Known, NewChunk
from retrieval.types import Progress, Skipped
from retrieval.writer import Incoming, Tally

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

Paths = Iterable[str | os.PathLike[str]]
Text = tuple[str, str, str]  # source, text, title
AHEAD = 64  # given texts that are held at once, so that their sources are looked up together
CONTEXT_SHARE = 8  # at most one token in eight tells where a passage stands


W = TypeVar("W")  # a Writer, or what stores.writing has in its place


@dataclass
class Run(Generic[W]):
    """One update: the writer, the encoder once it is needed, and what was met so far."""

    writer: W
    encoder: Callable[[], Encoder]
    meta: Mapping[str, str]
    tell: Callable[[Progress], None] = lambda progress: None
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0, 0, 0, ""))
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def advance(self, **values: Any) -> None:
        tally: Tally = self.writer.tally  # type: ignore[attr-defined]
        self.progress = replace(self.progress, tokens=tally.tokens, **values)
        self.tell(self.progress)

    def encoded(self, chunks: int) -> None:
        self.advance(chunks=self.progress.chunks + chunks)


@dataclass(frozen=True)
class File:
    """A file as it was found, before it is opened."""

    path: Path
    source: str
    size: int
    mtime_ns: int

    def same(self, known: Known | None) -> bool:
        """Whether what is known of it is of this state."""
        return known is not None and (known.size, known.mtime_ns) == (self.size, self.mtime_ns)


def look(paths: Paths, folder: Path | None) -> list[File]:
    """The files in `paths` but for the index's own. Raises BadInput for a path that is missing."""
    ignored = [folder] if folder else []
    return [look_at(path) for path in find_files(paths, ignore=ignored)]


def update(run: Run[Any], files: Sequence[File], roots: Paths, *, prune: bool) -> None:
    """Bring `files` up to date; with `prune`, forget documents below `roots` that are not there."""
    run.progress = replace(
        run.progress, of_files=len(files), of_bytes=sum(max(0, file.size) for file in files)
    )
    run.writer.progress = run.encoded
    run.writer.expect(file.source for file in files)
    for file in files:
        run.advance(source=file.source)
        bring(run, file)
        run.advance(files=run.progress.files + 1, bytes=run.progress.bytes + max(0, file.size))
    if prune:
        _prune(run, [source_of(path) for path in roots], {file.source for file in files})


def add_texts(run: Run[Any], texts: Iterable[Text]) -> None:
    """Add or bring up to date documents that are given as (source, text, title)."""
    run.writer.progress = run.encoded
    run.progress = replace(run.progress, of_files=len(texts) if isinstance(texts, Sized) else 0)
    seen: set[str] = set()
    for source, text, title in _expected(run, texts):
        run.advance(source=source)
        try:
            if source in seen:
                raise Unreadable(source, "a document of this name was given before in this run")
            seen.add(source)
            _take_text(run, source, text, title)
        except Unreadable as error:
            run.skipped.append(Skipped(source, error.reason))
        run.advance(files=run.progress.files + 1)


def _expected(run: Run[Any], texts: Iterable[Text]) -> Iterator[Text]:
    """The same texts; the writer is told before which sources will come, some at a time."""
    given = iter(texts)
    while some := list(islice(given, AHEAD)):
        run.writer.expect(source for source, _, _ in some)
        yield from some


def look_at(path: Path) -> File:
    with contextlib.suppress(OSError):  # reading it will tell why
        stat = path.stat()
        return File(path, source_of(path), stat.st_size, stat.st_mtime_ns)
    # A link that leads nowhere is told by its own name: that of its target says nothing to anybody.
    lost = os.path.islink(path) and vanished(path)
    return File(path, printable(path.absolute().as_posix()) if lost else source_of(path), -1, 0)


def bring(run: Run[Any], file: File) -> None:
    writer = run.writer
    known = writer.known(file.source)
    if known and file.same(known):
        keep(run, known, file.size, file.mtime_ns, run.meta)
        return
    why = writer.catalog.unread(file.source, file.size, file.mtime_ns)
    if why is None:
        try:
            _read(run, file, known)
            return
        except Unreadable as error:
            why = error.reason + ("; the state indexed before is kept" if known else "")
            if file.size >= 0:
                writer.skip(file.source, file.size, file.mtime_ns, why)
    run.skipped.append(Skipped(file.source, why))


def _read(run: Run[Any], file: File, known: Known | None) -> None:
    """A file that is new, or was touched since; raises Unreadable."""
    if known and known.size == file.size and known.sha256 == _settled(file):
        keep(run, known, file.size, file.mtime_ns, run.meta)
    else:
        document = read(file.path)
        _take(run, document, known, _settled(file), file.size, file.mtime_ns)


def _take_text(run: Run[Any], source: str, text: str, title: str) -> None:
    try:
        sha256 = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise Unreadable(source, f"not proper Unicode: {error.reason}") from None
    known = run.writer.known(source)
    if known and known.sha256 == sha256:
        keep(run, known, None, None, run.meta)
        return
    if not text.strip():
        text, title = title, ""
    if not text.strip():
        raise Unreadable(source, "no text in it")
    _take(run, Document(source, text, "text", title), known, sha256, None, None)


def keep(
    run: Run[Any], known: Known, size: int | None, mtime_ns: int | None, meta: Mapping[str, str]
) -> None:
    """A document whose content is as it was."""
    run.unchanged += 1
    new_meta = bool(meta) and not meta.items() <= run.writer.catalog.meta(known.id).items()
    if new_meta or (known.size, known.mtime_ns) != (size, mtime_ns):
        run.writer.touch(known, size, mtime_ns, meta)


def _take(
    run: Run[Any], document: Document, known: Known | None, sha256: str,
    size: int | None, mtime_ns: int | None,
) -> None:  # fmt: skip
    chunks = passages(document, run.encoder())
    if not chunks:
        raise Unreadable(document.source, "no text in it")
    meta = {**(run.writer.catalog.meta(known.id) if known else {}), **run.meta}
    incoming = Incoming(
        document.source, document.kind, document.title, sha256, chunks, meta, size, mtime_ns
    )
    run.writer.add(incoming, known)
    run.skipped += (Skipped(document.source, note) for note in document.notes)


def _prune(run: Run[Any], roots: Sequence[str], found: set[str]) -> None:
    for source in run.writer.catalog.files(run.writer.now):
        below = any(source == root or source.startswith(root.rstrip("/") + "/") for root in roots)
        if below and source not in found and vanished(path_of(source)):
            known = run.writer.known(source)
            if known:
                run.writer.remove(known)


def passages(document: Document, encoder: Encoder) -> list[NewChunk]:
    """A document's passages, each with those titles above it that say something new as context."""
    count = lru_cache(maxsize=4096)(encoder.count_tokens)
    room = encoder.document_length // CONTEXT_SHARE
    found = cut(document, encoder.document_length - room, encoder.count_tokens)
    if not document.title and not any(chunk.heading for chunk in found):
        found = cut(document, encoder.document_length, encoder.count_tokens)
    chunks = []
    for chunk in found:
        context = _context(document.title, chunk.heading, chunk.text, room, count)
        chunks.append(
            NewChunk(chunk.start, chunk.end, chunk.text, context, chunk.heading, chunk.page)
        )
    return chunks


def _context(title: str, heading: str, text: str, room: int, count: Callable[[str], int]) -> str:
    """Title and headings, outermost first, that the passage does not begin with; as many as fit."""
    parts = dict.fromkeys(" ".join(part.split()) for part in (title, *heading.split(" > ")))
    told = [part for part in parts if part and part not in text[:200]]
    while told and count(" > ".join(told) + "\n") - count("") > room:
        told.pop(0)
    return " > ".join(told)


def _settled(file: File) -> str:
    """sha256 of a file that was just read; "", which fits nothing, if it changed meanwhile."""
    try:
        sha256 = digest(file.path)
        stat = file.path.stat()
    except OSError:
        return ""
    return sha256 if (stat.st_size, stat.st_mtime_ns) == (file.size, file.mtime_ns) else ""


def digest(path: Path) -> str:
    """sha256 (hex) of a regular file."""
    total = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


class NothingIndexed(BadInput):
    """No document of a run was readable."""


def nothing_indexed(paths: Paths, skipped: Sequence[Skipped]) -> NothingIndexed:
    """The error for a run in which no document was readable."""
    named = ", ".join(str(path) for path in paths) or "no path at all"
    if not skipped:
        return NothingIndexed(
            f"no file to index in {named} (hidden files and folders are passed over)"
        )
    first = skipped[0]
    more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return NothingIndexed(f"nothing in {named} can be indexed: {first.path} ({first.why}){more}")
