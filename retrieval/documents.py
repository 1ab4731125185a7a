"""Files to documents, documents to passages: find, read, cut. Knows no model and no index."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePath

from lfm2_mm.errors import Unreadable
from retrieval.chunks import cut
from retrieval.encodings import SNIFFED, binary, magic
from retrieval.extract import Extract, Refused
from retrieval.files import find_files, open_regular, path_of, printable, source_of
from retrieval.formats import READERS
from retrieval.structure import Chunk, Document, Heading, outline

__all__ = [
    "KINDS",
    "Chunk",
    "Document",
    "Heading",
    "Unreadable",
    "cut",
    "find_files",
    "path_of",
    "read",
    "source_of",
]

SUFFIXES = {  # kind -> the suffixes it is known by; README and the like have none and are text
    "text": "txt text",
    "markdown": "md markdown mdown mkd mdx",
    "rst": "rst rest",
    "html": "html htm xhtml",
    "pdf": "pdf",
    "docx": "docx docm",
    "csv": "csv tsv",
    "json": "json jsonl ndjson",
    "log": "log",
    "code": "py pyi pyx js mjs cjs jsx ts tsx c cc cpp cxx h hh hpp hxx cu m mm java kt kts scala "
    "go rs rb php pl pm swift cs fs vb lua r jl dart ex exs erl hs ml clj lisp el sh bash zsh fish "
    "ps1 bat cmd sql css scss less xml xsl xsd toml yaml yml ini cfg conf env properties tf proto "
    "graphql cmake mk make dockerfile gradle groovy vue svelte tex bib asm s",
}
KINDS = {f".{suffix}": kind for kind, names in SUFFIXES.items() for suffix in names.split()}
CODE_NAMES = frozenset({"makefile", "dockerfile", "cmakelists.txt", "rakefile", "gemfile"})


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The kind a file's name promises; "text" without a suffix, None for a suffix not known."""
    name = PurePath(path)
    if name.name.lower() in CODE_NAMES:
        return "code"
    return KINDS.get(name.suffix.lower()) if name.suffix else "text"


def read(path: str | os.PathLike[str]) -> Document:
    """The document in a file. Its `source` is the absolute path, links resolved (`source_of`).

    Whatever keeps a file from being read, from a missing right to a scanned PDF, raises Unreadable
    with the reason in words a person can act on; nothing else is raised for any file. A PDF is read
    as one whatever its name is; a suffix that is not known is read if it turns out to be text.
    """
    try:
        kind, extract = extract_file(path)
        if not extract.text.strip():
            raise Refused("no text in it")
    except Refused as error:
        raise Unreadable(shown(path), str(error)) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(shown(path), why) from None
    name = PurePath(path).name if kind == "code" else PurePath(path).stem
    document = Document(
        source_of(path), extract.text, kind, extract.title or printable(name), extract.pages,
        extract.headings, extract.notes,
    )  # fmt: skip
    titled = not extract.title and kind in ("markdown", "rst")  # by their first heading
    first = next(outline(document), None) if titled else None
    return replace(document, title=first.title) if first and first.title else document


def extract_file(path: str | os.PathLike[str]) -> tuple[str, Extract]:
    """(kind, what was taken out) of a file; raises Refused or OSError."""
    with open_regular(path) as file:
        head = file.read(SNIFFED)
        if not head:
            raise Refused("empty")
        file.seek(0)
        kind = settle(kind_of(path), PurePath(path).suffix, head)
        return kind, READERS[kind](file)


def settle(promised: str | None, suffix: str, head: bytes) -> str:
    """The kind of a file by its name and its first bytes; raises Refused where they disagree."""
    if head.startswith(b"%PDF-"):
        return "pdf"
    why, named = binary(head), f", although it is named {printable(suffix)}" if suffix else ""
    if promised == "pdf" and b"%PDF-" not in head[:1024]:
        raise Refused(f"{magic(head) or 'not a PDF'}{named}")
    if promised == "docx" and not head.startswith(b"PK"):
        raise Refused(f"{magic(head) or 'not a Word document'}{named}")
    if promised in ("pdf", "docx"):
        return promised
    if why and promised is None:
        raise Refused(f"no reader for {printable(suffix)}: {why}")
    if why:
        raise Refused(why + (named if magic(head) else ""))
    return promised or "text"


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message: one printable line."""
    name = printable(Path(os.path.abspath(path)).as_posix())
    return name if len(name) <= 300 else f"{name[:140]} … {name[-140:]}"
