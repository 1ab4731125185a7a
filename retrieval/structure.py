"""What a document is, and where its headings stand in the text. Knows text; knows no files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Heading(NamedTuple):
    """A place where a section begins: `start` is a character offset, level 1 is the outermost."""

    start: int
    level: int
    title: str


@dataclass(frozen=True)
class Document:
    """The text of one source, and what is known of its structure.

    `text` is the file's own text for plain formats, so that offsets point into the file (decoded,
    line ends kept, without a byte order mark); for html, pdf, docx and json it is what was taken
    out of it.
    """

    source: str
    text: str
    kind: str  # one of the values of documents.KINDS
    title: str
    pages: tuple[int, ...] = ()  # character offset where each page starts (pdf)
    headings: tuple[Heading, ...] = ()  # where the reader knows them; else `outline` finds them
    notes: tuple[str, ...] = ()  # what could not be read of it, for people


@dataclass(frozen=True)
class Chunk:
    """A passage: `document.text[start:end] == text`, always."""

    start: int
    end: int
    text: str
    heading: str  # path of headings above it, "Guide > Refunds"; "" where there is none
    page: int | None  # counted from 1; the page on which the passage begins


def outline(document: Document) -> Iterator[Heading]:
    """The headings of a document in order: as its reader found them, or as its text shows."""
    if document.headings:
        return iter(document.headings)
    find = OUTLINES.get(document.kind)
    return find(document.text) if find else iter(())


MARKDOWN_LINE = re.compile(
    r"^ {0,3}(?:(?P<fence>`{3,}|~{3,}).*"
    r"|(?P<atx>#{1,6})(?:[ \t]+(?P<title>.*))?"
    r"|(?P<setext>[^\s#>|=\-`~].{0,200})\r?\n {0,3}(?P<rule>=+|-{2,})[ \t]*)\r?$",
    re.MULTILINE,
)
FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:.*\n){0,200}?---[ \t]*\r?$", re.MULTILINE)


def outline_markdown(text: str) -> Iterator[Heading]:
    """Headings of both styles; fenced code and the front matter hold none."""
    front = FRONT_MATTER.match(text)
    fence = ""
    for found in MARKDOWN_LINE.finditer(text, front.end() if front else 0):
        mark = found["fence"]
        if mark:
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence):
                fence = ""
        elif not fence and found["atx"]:
            title = (found["title"] or "").strip().rstrip("#").strip()
            yield Heading(found.start(), len(found["atx"]), title)
        elif not fence and found["setext"] and begins_paragraph(text, found.start()):
            level = 1 if found["rule"][0] == "=" else 2
            yield Heading(found.start(), level, found["setext"].strip())


def begins_paragraph(text: str, start: int) -> bool:
    """Whether the line before `start` is blank or absent."""
    before = text.rfind("\n", 0, max(0, start - 1)) + 1
    return not text[before:start].strip()


RST_TITLE = re.compile(
    r"^(?:(?P<over>([=\-~^\"'`#*+.:_])\2{2,})[ \t]*\r?\n)?"
    r"[ \t]{0,40}(?P<title>\S.{0,200}?)[ \t]{0,8}\r?\n"
    r"(?P<under>([=\-~^\"'`#*+.:_])\5{2,})[ \t]*\r?$",
    re.MULTILINE,
)


def outline_rst(text: str) -> Iterator[Heading]:
    """Underlined titles; an adornment's level is the order in which it first appears."""
    levels: dict[tuple[bool, str], int] = {}
    for found in RST_TITLE.finditer(text):
        title, under, over = found["title"], found["under"], found["over"]
        if len(under) < len(title) or not any(map(str.isalnum, title)):
            continue
        level = levels.setdefault((bool(over), under[0]), len(levels) + 1)
        yield Heading(found.start(), level, title)


def outline_csv(text: str) -> Iterator[Heading]:
    """The column names as one heading over all rows, where the first line looks like names."""
    line = text[:2000].lstrip().partition("\n")[0].partition("\r")[0]
    delimiter = max(",;\t|", key=line.count)
    cells = [cell.strip() for row in csv.reader([line], delimiter=delimiter) for cell in row]
    if len(cells) > 1 and all(re.search(r"[^\W\d_]", cell) for cell in cells):
        yield Heading(0, 1, ", ".join(cells)[:200])


# Definitions of most languages by their keyword; functions of C's family by the opened brace;
# sections of ini and toml. A place found wrongly only moves a cut, so no language is parsed.
# Possessive (the second +) wherever a line could be tried in many ways: that would be quadratic.
DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*+)(?:"
    r"(?:(?:export|default|pub(?:\([\w: ]+\))?|public|private|protected|internal|static|final|"
    r"abstract|async|unsafe|const|sealed|data|open|override|inline|virtual|extern|typedef)[ \t]+)*"
    r"(?P<word>class|struct|interface|enum|trait|impl|mod|module|namespace|object|record|union|"
    r"def|fn|func|function|fun|sub|type)\*?(?:[ \t]+|(?=<))"
    r"(?:\([^)\n]{0,80}\)[ \t]*|<[^>\n]{0,80}>[ \t]*)?(?P<name>[A-Za-z_$][\w.:$]*+)"
    r"(?=[ \t]*(?:[({<\[=;,]|\r?$|(?:extends|implements|struct|interface|for|where)\b))"
    r"|(?:export[ \t]+)?(?:const|let|var)[ \t]+(?P<arrow>[\w$]+)[ \t]*=[ \t]*(?:async[ \t]*)?"
    r"(?:function\b|\([^()\n]{0,200}\)[ \t]*=>|\w+[ \t]*=>)"
    r"|(?i:CREATE[ \t]+(?:[A-Z]+[ \t]+){1,4}?(?:IF[ \t]+NOT[ \t]+EXISTS[ \t]+)?)(?P<sql>[\w.\"`]+)"
    r"|(?P<table>\[\[?[\w .:\"'/-]{1,100}\]\]?)[ \t]*\r?$"
    r"|(?!(?:if|else|for|while|do|switch|case|catch|return|with|new|throw|match|when|using|"
    r"try|lock|synchronized|elif|elsif|unless|until)\b)"
    r"(?P<call>[\w \t:<>,*&~\[\].?@$]{1,160}+)"
    r"\([^;{}()]{0,400}+(?:\([^;{}()]{0,80}+\)[^;{}()]{0,400}+)*+"
    r"\)[^;{}()\n=]{0,80}+\n?[ \t]*+\{"
    r")",
    re.MULTILINE,
)
HOLDS_MEMBERS = frozenset(
    {"class", "struct", "interface", "enum", "trait", "impl", "mod", "module", "namespace"}
    | {"object", "record", "union"}
)
LEADS_IN = re.compile(r"[ \t]*(?:@|#|//|/\*|\*|--)")  # decorators and comments above a definition


def outline_code(text: str) -> Iterator[Heading]:
    """Functions, classes and their members; what is defined inside a function is part of it."""
    above: list[tuple[int, bool]] = []  # (indentation, holds members) of the definitions around
    floor = 0
    for found in DEFINITION.finditer(text):
        indent = len(found["indent"].expandtabs(4))
        while above and above[-1][0] >= indent:
            above.pop()
        if not above[-1][1] if above else indent:
            continue
        above.append((indent, found["word"] in HOLDS_MEMBERS))
        yield Heading(lead_in(text, found.start(), floor), len(above), defined_name(found))
        floor = found.end()


def defined_name(found: re.Match[str]) -> str:
    if found["call"]:
        return found["call"].split()[-1].strip("*&")  # after the type and the modifiers
    return next(filter(None, found.group("name", "arrow", "sql", "table"))).strip('[]"`:.')


def lead_in(text: str, start: int, floor: int) -> int:
    """`start` moved up over the decorator and comment lines right above it, not beyond `floor`."""
    while start > floor:
        before = text.rfind("\n", floor, start - 1) + 1
        if before <= floor or not LEADS_IN.match(text, before, start):
            return start
        start = before
    return start


OUTLINES: dict[str, Callable[[str], Iterator[Heading]]] = {
    "markdown": outline_markdown,
    "rst": outline_rst,
    "code": outline_code,
    "csv": outline_csv,
}
