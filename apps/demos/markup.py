"""Hits, documents and sources as HTML. Texts are hostile: nothing reaches the page unescaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apps.grounded import Cited
    from retrieval.recall import Recall
    from retrieval.types import Hit, Match

EXCERPT = 520  # characters of a passage on its card
AROUND = 20_000  # characters shown before and after a passage in its source

BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")

# The page's templates read these as code, so they are written as entities too.
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def escape(text: str) -> str:
    """`text` as it may stand anywhere in the page, attribute values included."""
    return html.escape(text).translate(_TEMPLATE)


def cards(hits: Sequence[Hit], names: Sequence[str]) -> str:
    """The results of a search, one card a hit; `names` are the sources as they are shown."""
    if not hits:
        return note("Nothing found. Other words, another mode, or a wider filter may help.")
    best = max(hit.score for hit in hits)
    return "".join(
        _card(i, hit, name, best) for i, (hit, name) in enumerate(zip(hits, names, strict=True))
    )


def _card(number: int, hit: Hit, name: str, best: float) -> str:
    share = max(0.0, min(1.0, hit.score / best)) if best > 0 else 0.0
    start, end = excerpt(hit.text, hit.matches)
    before, after = "… " if start else "", " …" if end < len(hit.text) else ""
    passage = BLANK_LINES.sub("\n", marked(hit.text, hit.matches, start, end))
    heading = f'<div class="heading">{escape(hit.heading)}</div>' if hit.heading else ""
    return (
        f'<article class="hit"><header><span class="rank">{hit.rank}</span>'
        f'<button type="button" class="open" data-hit="{number}" title="Open the source here">'
        f"{escape(name)}</button>"
        f'<span class="place">{place(hit)}</span>'
        f'<span class="score" title="score {hit.score:.4f}">'
        f'<i><i style="width:{share:.0%}"></i></i><b>{hit.score:.2f}</b></span></header>'
        f"{heading}<p>{before}{passage}{after}</p></article>"
    )


def answer(pieces: Sequence[Cited], told: str = "") -> str:
    """An answer whose citations open the passage they name; `told` is a remark below."""
    shown = "".join(
        "".join(_citation(number) for number in piece.numbers) or escape(piece.text)
        for piece in pieces
    )
    return f'<div class="answer">{shown}</div>{note(told)}'


def _citation(number: int) -> str:
    return (
        f'<button type="button" class="cite" data-hit="{number - 1}" '
        f'title="Open passage {number}">{number}</button>'
    )


def place(hit: Hit) -> str:
    """Where in its source a hit stands."""
    page = f"page {hit.page} · " if hit.page is not None else ""
    return f"{page}characters {hit.start:,}–{hit.end:,}"


def excerpt(text: str, matches: Sequence[Match]) -> tuple[int, int]:
    """The window of EXCERPT characters with the strongest matches, cut between words."""
    if len(text) <= EXCERPT:
        return 0, len(text)
    starts = [0, *(max(0, match.start - 40) for match in matches)]
    weight = {
        s: sum(m.score for m in matches if s <= m.start and m.end <= s + EXCERPT) for s in starts
    }
    start = max(starts, key=lambda s: (weight[s], -s))
    end = min(len(text), start + EXCERPT)
    if start and (space := text.find(" ", start, start + 40)) != -1:
        start = space + 1
    if end < len(text) and (space := text.rfind(" ", end - 40, end)) != -1:
        end = space
    return start, end


def marked(text: str, matches: Iterable[Match], start: int = 0, end: int | None = None) -> str:
    """text[start:end] with the matched words marked, the stronger the match the stronger."""
    end = len(text) if end is None else end
    parts, at = [], start
    for match in sorted(matches, key=lambda match: (match.start, -match.score)):
        if match.start < at or match.end > end or match.start == match.end:
            continue
        strength = max(0.15, min(1.0, match.score))
        parts.append(escape(text[at : match.start]))
        parts.append(
            f'<mark style="--strength:{strength:.2f}" '
            f'title="{escape(match.token.strip())} · {match.score:.2f}">'
            f"{escape(text[match.start : match.end])}</mark>"
        )
        at = match.end
    return "".join([*parts, escape(text[at:end])])


def source(name: str, text: str, hit: Hit) -> str:
    """The document around a hit, the passage marked. `text` is the whole document."""
    start, end = max(0, hit.start - AROUND), min(len(text), hit.end + AROUND)
    before, after = "… " if start else "", " …" if end < len(text) else ""
    return (
        f'<header><b>{escape(name)}</b><span class="place">{place(hit)}</span></header>'
        f"<pre>{before}{escape(text[start : hit.start])}"
        f'<span class="passage">{marked(hit.text, hit.matches)}</span>'
        f"{escape(text[hit.end : end])}{after}</pre>"
    )


def documents(sources: Sequence[tuple[str, str, int]]) -> str:
    """The list of documents with a delete button each: (source, name as shown, chunks)."""
    if not sources:
        return note("No documents yet.")
    rows = (
        f'<li><span title="{escape(source)}">{escape(name)}</span><small>{chunks}</small>'
        f'<button type="button" class="delete" data-source="{escape(source)}" '
        f'aria-label="Delete {escape(name)}" title="Delete">×</button></li>'
        for source, name, chunks in sources
    )
    return f'<ul class="documents">{"".join(rows)}</ul>'


def meter(found: Recall) -> str:
    """What was measured, in a sentence and as a bar."""
    if not found.queries:
        return note("Nothing to measure yet.")
    told = (
        f"{found.value:.1%} of the {found.k} best of exact scoring are found "
        f"({found.queries} phrases from these documents): {found.search_ms:.1f} ms a search, "
        f"{found.exact_ms:.1f} ms exactly"
    )
    bar = f'<span class="meter"><i style="width:{found.value:.1%}"></i></span>'
    return f"{bar}{note(told)}"


def note(text: str) -> str:
    """A remark; nothing for the empty one."""
    return f'<p class="note">{escape(text)}</p>' if text else ""
