"""Why a passage was found: which of its words each word of the query matched. Knows no index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lfm2_mm.errors import IndexMismatch
from retrieval import lexical
from retrieval.types import Match

if TYPE_CHECKING:
    from retrieval.encoder import Encoder, Token


class Word(NamedTuple):
    start: int
    end: int


def by_meaning(
    encoder: Encoder, query: str, queried: np.ndarray, context: str, text: str, stored: np.ndarray
) -> tuple[Match, ...]:
    """For each word of the query, in its order, the word of `text` whose vector lies nearest.

    queried: (Q, dim), the query's vectors; stored: (T, dim), those of the passage, which was
    encoded as `context`, a line break and `text`. Tokens are merged into whole words; markers,
    expansion and the context are left out.
    """
    passage = f"{context}\n{text}" if context else text
    shift = len(passage) - len(text)
    asked = _words(query, encoder.query_tokens(query), len(queried), 0)
    there = _words(passage, encoder.document_tokens(passage), len(stored), shift)
    if not asked or not there:
        return ()
    columns = [row for rows in there.values() for row in rows]
    owners = [word for word, rows in there.items() for _ in rows]
    found = []
    for word, rows in asked.items():
        similarity = queried[rows] @ stored[columns].T
        best = int(similarity.max(axis=0).argmax())
        start, end = owners[best].start - shift, owners[best].end - shift
        score = float(similarity[:, best].max())
        found.append(Match(query[word.start : word.end], text[start:end], start, end, score))
    return tuple(found)


def by_word(terms: Sequence[str], text: str) -> tuple[Match, ...]:
    """Every place in `text` that one of the terms of a lexical search is found at, in order."""
    pieces = list(lexical.pieces(text))
    spaced = lexical.matching({p.text for p in pieces if not p.unspaced}, terms)
    found = []
    for piece in pieces:
        if piece.text in spaced:
            found.append(Match(spaced[piece.text], piece.text, piece.start, piece.end, 1.0))
        elif piece.unspaced:
            found += _within(terms, piece)
    return tuple(found)


def _within(terms: Sequence[str], run: lexical.Piece) -> list[Match]:
    found = []
    for term in terms:
        place = run.text.find(term)
        while place >= 0:
            start = run.start + place
            found.append(Match(term, term, start, start + len(term), 1.0))
            place = run.text.find(term, place + 1)
    return sorted(found, key=lambda match: match.start)


def _words(text: str, tokens: Sequence[Token], rows: int, floor: int) -> dict[Word, list[int]]:
    """The words of `text` from `floor` on, and the rows of the vectors of each."""
    if len(tokens) != rows:
        raise IndexMismatch(
            f"{rows} vectors are stored for a passage of {len(tokens)} tokens: "
            "the encoder is not the one that made the index; index again into a new folder"
        )
    words: dict[Word, list[int]] = {}
    for row, token in enumerate(tokens):
        word = _word(text, token.start, token.end) if token.start >= 0 else None
        if word and word.start >= floor:
            words.setdefault(word, []).append(row)
    return words


def _word(text: str, start: int, end: int) -> Word | None:
    """The whole word around a token; a token of a script without spaces stands for itself."""
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not text[end - 1].isalnum():
        end -= 1
    if start == end:
        return None
    while start and _joined(text, start):
        start -= 1
    while end < len(text) and _joined(text, end):
        end += 1
    return Word(start, end)


def _joined(text: str, place: int) -> bool:
    """Whether the characters on both sides of `place` belong to one word."""
    sides = text[place - 1 : place + 1]
    return sides.isalnum() and not lexical.UNSPACED.search(sides)
