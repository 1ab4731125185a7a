"""Words: what of a text and of a query is looked up, in SQLite's FTS5. Knows no vectors.

FTS5 folds case and accents, cuts at everything that is not a letter or digit, and stems English
(porter). What it cannot do is added as extra words: overlapping pairs for scripts without spaces,
the parts of camelCase names, and the plain form of ligatures and full-width letters.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TOKENIZE = "porter unicode61 remove_diacritics 2"
COLUMNS = ("title", "heading", "body", "extra")
MOST_TERMS = 128  # of one query; FTS5 refuses expressions beyond its own limits

WORD = re.compile(r"[^\W_]+")
UNSPACED = re.compile(  # kana, ideographs, hangul, and their full-width neighbours
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U000323af]+"
)
CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
STOP_WORDS = frozenset(
    WORD.findall(
        "a about above after again against all am an and any are as at be because been before "
        "being below between both but by can could did do does doing down during each few for "
        "from further had has have having he her here hers herself him himself his how i if in "
        "into is it its itself just me more most my myself no nor not now of off on once only or "
        "other our ours ourselves out over own s same she should so some such t than that the "
        "their theirs them themselves then there these they this those through to too under until "
        "up very was we were what when where which while who whom why will with would you your "
        "yours yourself yourselves"
    )
)


@dataclass(frozen=True)
class Piece:
    """A word of a text, or a run of a script that does without spaces."""

    text: str
    start: int
    end: int
    unspaced: bool


def pieces(text: str) -> Iterator[Piece]:
    """Words and unspaced runs in order.

    >>> [p.text for p in pieces("get_user(名前), café")]
    ['get', 'user', '名前', 'café']
    """
    for word in WORD.finditer(text):
        place = word.start()
        for run in UNSPACED.finditer(text, word.start(), word.end()):
            if place < run.start():
                yield Piece(text[place : run.start()], place, run.start(), False)
            yield Piece(run.group(), run.start(), run.end(), True)
            place = run.end()
        if place < word.end():
            yield Piece(text[place : word.end()], place, word.end(), False)


def added(text: str) -> str:
    """Words to index beside those that FTS5 finds in `text` itself.

    >>> added("the parseHTTPHeader of 東京都")
    'parse HTTP Header 東京 京都'
    """
    found: list[str] = []
    for piece in pieces(text):
        words = _extra(piece)
        # FTS5 takes "LFM2を使う" for one word
        glued = (
            text[piece.start - 1 : piece.start].isalnum()
            or text[piece.end : piece.end + 1].isalnum()
        )
        found += words or ([piece.text] if glued else [])
    return " ".join(found)


def _extra(piece: Piece) -> list[str]:
    plain = unicodedata.normalize("NFKC", piece.text)
    if piece.unspaced:
        return _pairs(plain)
    parts = CAMEL.findall(plain) if plain.isascii() else []
    words = parts if len(parts) > 1 and any(map(str.isalpha, parts[1:])) else []
    return words if plain == piece.text else [plain, *words]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def clean(text: str) -> str:
    """`text` for the body column: same length, no NUL (at which SQLite would stop reading)."""
    return text.replace("\0", " ")


def terms(query: str) -> list[str]:
    """What of a query is looked up: each once, stop words left out where others stay.

    >>> terms("What is the refund policy?"), terms("to be or not to be"), terms('"NEAR(*')
    (['refund', 'policy'], ['to', 'be', 'or', 'not'], ['near'])
    """
    found: list[str] = []
    for piece in pieces(unicodedata.normalize("NFKC", query)):
        if piece.unspaced:
            found += _pairs(piece.text)
        else:
            found += [piece.text.lower(), *(word.lower() for word in _extra(piece))]
    unique = list(dict.fromkeys(found))
    return ([term for term in unique if term not in STOP_WORDS] or unique)[:MOST_TERMS]


def expression(words: Iterable[str]) -> str:
    """An FTS5 query for any of the words. They hold letters and digits only: quotes are enough."""
    return " OR ".join(f'"{word}"' for word in words)


def create(connection: sqlite3.Connection) -> None:
    """The table `words`: one row for each passage, rowid = its id."""
    connection.execute(
        f"CREATE VIRTUAL TABLE words USING fts5({', '.join(COLUMNS)}, tokenize='{TOKENIZE}')"
    )


def matching(words: Iterable[str], terms: Iterable[str]) -> dict[str, str]:
    """Those of `words` that FTS5 takes for a term (stemmed, accents folded), and for which.

    >>> matching({"Refunds", "café", "money"}, ["refund", "cafe"])
    {'Refunds': 'refund', 'café': 'cafe'}
    """
    table = sqlite3.connect(":memory:")
    try:
        create(table)
        table.executemany(
            "INSERT INTO words(body, extra) VALUES (?, ?)", ((w, added(w)) for w in words)
        )
        query = "SELECT body FROM words WHERE words MATCH ?"
        return {
            word: term for term in terms for (word,) in table.execute(query, (expression([term]),))
        }
    finally:
        table.close()
