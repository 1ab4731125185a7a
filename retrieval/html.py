"""HTML to text with headings, as a stream of tags: no tree, so no depth to fear."""

from __future__ import annotations

import re
from collections.abc import Mapping

from retrieval.extract import Extract, Writer

FED = 1 << 16  # characters given to the parser at a time
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
SKIPPED = frozenset(
    {"head", "script", "style", "template", "noscript", "nav", "svg", "math", "iframe", "object"}
    | {"canvas", "select", "button"}
)
PARAGRAPHS = frozenset(
    {"p", "div", "section", "article", "main", "header", "footer", "aside", "ul", "ol", "dl"}
    | {"table", "blockquote", "pre", "figure", "figcaption", "form", "fieldset", "details"}
    | {"address", "hr", "body"}
)
LINE_TAGS = frozenset({"li", "dt", "dd", "tr", "br", "caption", "summary", "legend"})
HEADINGS = {f"h{level}": level for level in range(1, 7)}


def declared_charset(data: bytes) -> str | None:
    """The encoding an HTML file names near its beginning, as browsers read it."""
    found = CHARSET.search(data, 0, 4096)
    name = found[1].decode("ascii", "replace").lower() if found else None
    return "cp1252" if name in ("iso-8859-1", "latin1", "latin-1", "ascii") else name


def read_html(text: str, notes: tuple[str, ...] = ()) -> Extract:
    """What a reader of the page sees, without scripts and navigation."""
    from lxml import etree

    page = HtmlTarget(Writer(notes))
    parser = etree.HTMLParser(target=page, encoding="utf-8", huge_tree=True)
    for start in range(0, len(text), FED):
        parser.feed(text[start : start + FED].encode("utf-8", "replace"))
    parser.close()
    page.out.title = " ".join(page.title.split())[:500]
    return page.out.extract()


class HtmlTarget:
    """Receives tags and text in order; the names of the methods are lxml's."""

    def __init__(self, out: Writer) -> None:
        self.out = out
        self.skipped = 0  # how many elements around are not for reading
        self.verbatim = 0  # how many <pre> around
        self.titling = False
        self.title = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in SKIPPED:
            self.skipped += 1
        if tag == "title" and not self.title:
            self.titling = True
        if self.skipped:
            return
        if tag in HEADINGS:
            self.out.open_heading(HEADINGS[tag])
        elif tag == "img":
            self.out.flow(attributes.get("alt") or "")
        elif tag in ("td", "th"):
            self.out.flow(" ")
        self.separate(tag)
        self.verbatim += tag == "pre"

    def end(self, tag: str) -> None:
        if tag in SKIPPED:
            self.skipped -= 1
        if tag == "title":
            self.titling = False
        if self.skipped:
            return
        if tag in HEADINGS:
            self.out.close_heading()
        elif tag in ("td", "th"):
            self.out.flow(" ")
        self.verbatim -= tag == "pre"
        self.separate(tag)

    def separate(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self.out.gap(2)
        elif tag in LINE_TAGS:
            self.out.gap(1)

    def data(self, text: str) -> None:
        if self.titling:
            self.title += text
        elif self.verbatim and not self.skipped:
            self.out.write(text)
        elif not self.skipped:
            self.out.flow(text)

    def close(self) -> None:
        """Asked for by lxml."""
