"""Word documents to text with headings, as a stream of tags. Knows zip and WordprocessingML."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, BinaryIO

from retrieval.extract import Extract, Refused, Writer

FED = 1 << 16  # bytes given to the parser at a time
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError)
MAX_PART_BYTES = 512 << 20  # of the text part of a .docx, unpacked
MAX_RATIO = 300  # unpacked to packed: real ones stay below 100


def read_docx(file: BinaryIO) -> Extract:
    """The paragraphs, headings and tables of a Word document."""
    try:
        with zipfile.ZipFile(file) as archive:
            levels = heading_styles(part(archive, "word/styles.xml"))
            body = part(archive, "word/document.xml")
            if body is None:
                raise Refused("not a Word document: it holds no word/document.xml")
            return docx_text(body, levels)
    except DAMAGE as error:
        raise Refused(f"a damaged or truncated Word document ({error})") from None
    except RuntimeError:  # zipfile's word for a part that needs a password
        raise Refused("an encrypted Word document") from None


def part(archive: zipfile.ZipFile, name: str) -> IO[bytes] | None:
    """One file of the archive opened for reading, never more than it says it holds; or None."""
    try:
        about = archive.getinfo(name)
    except KeyError:
        return None
    bomb = about.file_size > MAX_RATIO * max(about.compress_size, 1) and about.file_size > 1 << 20
    if bomb or about.file_size > MAX_PART_BYTES:
        raise Refused(
            f"its {name} unpacks {about.compress_size:,} to {about.file_size:,} bytes; "
            f"the limits are {MAX_RATIO} times and {MAX_PART_BYTES >> 20} MB"
        )
    return archive.open(name)


def docx_text(body: IO[bytes], levels: Mapping[str, int]) -> Extract:
    target = DocxTarget(Writer(), levels)
    parse(body, target)
    return target.out.extract()


def heading_styles(styles: IO[bytes] | None) -> dict[str, int]:
    """Level of each paragraph style that is a heading: the names of styles differ by language."""
    target = StyleTarget()
    if styles is not None:
        parse(styles, target)
    return target.levels


def parse(xml: IO[bytes], target: StyleTarget | DocxTarget) -> None:
    from lxml import etree

    parser = etree.XMLParser(target=target, resolve_entities=False, no_network=True)
    try:
        while block := xml.read(FED):
            parser.feed(block)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise Refused(f"a damaged Word document ({error})") from None


class Target:
    """What both receivers of tags have in common; the names of the methods are lxml's."""

    def doctype(self, name: str, public: str, system: str) -> None:
        raise Refused("a Word document with a DOCTYPE, which no word processor writes")

    def data(self, text: str) -> None:
        """Text between tags."""

    def close(self) -> None:
        """Asked for by lxml."""


class StyleTarget(Target):
    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self.style = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        value = attributes.get(WORD + "val", "")
        if tag == WORD + "style":
            self.style = attributes.get(WORD + "styleId", "")
        elif tag == WORD + "name" and (level := heading_level(value)):
            self.levels[self.style] = level
        elif tag == WORD + "outlineLvl" and value in "012345678":
            self.levels.setdefault(self.style, int(value) + 1)

    def end(self, tag: str) -> None:
        """Nothing ends that matters here."""


def heading_level(name: str) -> int | None:
    """Level of a built-in style by its name, which Word keeps in English: "heading 2", "Title"."""
    found = re.fullmatch(r"heading ([1-9])", name.lower())
    return int(found[1]) if found else 1 if name.lower() == "title" else None


class DocxTarget(Target):
    def __init__(self, out: Writer, levels: Mapping[str, int]) -> None:
        self.out = out
        self.levels = levels
        self.skipped = 0  # how many second versions of something already read are around
        self.cells = 0  # how many table cells are around
        self.reading = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == FALLBACK:
            self.skipped += 1
        elif self.skipped:
            return
        elif tag == WORD + "p":
            self.separate()
        elif tag == WORD + "pStyle" and not self.cells:
            level = self.levels.get(attributes.get(WORD + "val", ""))
            if level:
                self.out.open_heading(level)
        elif tag == WORD + "tc":
            self.cells += 1
        elif tag in (WORD + "tab", WORD + "br", WORD + "cr"):
            self.out.flow(" ")
        self.reading = tag == WORD + "t"

    def end(self, tag: str) -> None:
        self.reading = False
        if tag == FALLBACK:
            self.skipped -= 1
        elif self.skipped:
            return
        elif tag == WORD + "p":
            self.out.close_heading()
            self.separate()
        elif tag == WORD + "tc":
            self.cells -= 1
        elif tag == WORD + "tr":
            self.out.gap(1)

    def separate(self) -> None:
        if self.cells:
            self.out.flow(" ")
        else:
            self.out.gap(2)

    def data(self, text: str) -> None:
        if self.reading and not self.skipped:
            self.out.flow(text)
