"""What a checkpoint with few words can say: text -> phrases of its own words, the rest spelled.

Such a checkpoint names its words in `spoken_words.json`. Knows text; knows no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_value

FILE = "spoken_words.json"
LONGEST = 10  # words said in one breath; a longer text is cut
SHOWN, SHORT = 12, 40  # words named in a message, and characters of each
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIECE = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d|[,.?!;:…]")
ENDS = {".": ".", "!": ".", "…": ".", "?": "?", ",": ",", ";": ",", ":": ","}


@dataclass(frozen=True)
class Wording:
    """A text as it will be said. `spelled` are the words that the checkpoint lacks."""

    phrases: tuple[str, ...]
    spelled: tuple[str, ...]


class Lexicon:
    def __init__(self, words: Iterable[str]) -> None:
        """Words as they are written; a capital alone is the name of a letter."""
        self.words = frozenset(words)
        self._by_lower = {word.lower(): word for word in self.words if len(word) > 1}

    @classmethod
    def open(cls, folder: Path) -> Lexicon | None:
        """The words of the checkpoint in `folder`; None where it reads everything."""
        path = folder / FILE
        if not path.is_file():
            return None
        words = read_value(path)
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise CheckpointDamaged(f"{path} is no list of words")
        return cls(words)

    def wording(self, text: str) -> Wording:
        """`text` in words of the lexicon: numbers digit by digit, unknown words letter by letter.

        Raises BadInput where nothing is left that could be said.
        """
        said: list[str] = []
        spelled: dict[str, None] = {}
        text = unicodedata.normalize("NFKC", text).replace("’", "'")
        for piece in PIECE.findall(text):
            if piece in ENDS:
                said.append(ENDS[piece])
            elif piece.isdecimal():
                said.append(DIGITS[int(piece)])
            elif word := self._known(piece):
                said.append(word)
            else:
                spelled[piece] = None
                said += [letter for letter in _letters(piece) if letter in self.words]
        phrases = tuple(_phrases(said))
        if not phrases:
            raise BadInput(f"nothing in {text.strip()[:60]!r} can be said with this checkpoint")
        return Wording(phrases, tuple(spelled))

    def _known(self, word: str) -> str | None:
        if len(word) == 1:
            return next((w for w in (word, word.lower(), word.upper()) if w in self.words), None)
        return self._by_lower.get(word.lower())


def refusal(spelled: tuple[str, ...]) -> str:
    """Why a strict reading is refused."""
    return (
        f"not among the words that this checkpoint can say: {named(spelled)}; unless strict, "
        "they are spelled letter by letter, a published checkpoint says everything"
    )


def named(words: tuple[str, ...]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    brief = [word if len(word) <= SHORT else f"{word[:SHORT]}…" for word in words[:SHOWN]]
    return ", ".join(brief) + more


def _letters(word: str) -> str:
    """Capitals without accents."""
    plain = unicodedata.normalize("NFKD", word.upper())
    return "".join(c for c in plain if not unicodedata.combining(c))


def _phrases(said: Iterable[str]) -> Iterator[str]:
    """Sentences, cut where a breath is needed; marks before any word are dropped."""
    phrase: list[str] = []
    for word in said:
        if word in (",", ".", "?"):
            if phrase and word != ",":
                yield " ".join(phrase).rstrip(",") + word
                phrase = []
            elif phrase and not phrase[-1].endswith(","):
                phrase[-1] += ","
            continue
        if len(phrase) == LONGEST:
            yield " ".join(phrase).rstrip(",") + "."
            phrase = []
        phrase.append(word)
    if phrase:
        yield " ".join(phrase).rstrip(",") + "."
