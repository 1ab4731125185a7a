"""What is written in drawn pictures: words, numbers, codes, fonts, and which of them are held out.

Knows lists and files; draws nothing. A tenth of all words (by their hash) and two font families are
kept for measuring and never drawn in training. Numbers and codes are random, so that they cannot
be guessed from language.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import ImageFont

from lfm2_mm.errors import BadInput

# Classes of the cell under a character; 0 is "no character". What is not here is never drawn.
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"-+/%$#&@()*=€£"
CLASS_OF = {character: i + 1 for i, character in enumerate(CHARACTERS)}

FONTS = Path("/usr/share/fonts/truetype")
TRAINING_FONTS = (
    "dejavu/DejaVuSans", "dejavu/DejaVuSans-Bold", "dejavu/DejaVuSans-Oblique",
    "dejavu/DejaVuSansCondensed", "dejavu/DejaVuSansCondensed-Bold",
    "dejavu/DejaVuSansCondensed-Oblique", "dejavu/DejaVuSansMono", "dejavu/DejaVuSansMono-Bold",
    "dejavu/DejaVuSerif", "dejavu/DejaVuSerif-Bold", "dejavu/DejaVuSerif-Italic",
    "dejavu/DejaVuSerifCondensed", "dejavu/DejaVuSerifCondensed-BoldItalic",
    "liberation/LiberationSans-Regular", "liberation/LiberationSans-Bold",
    "liberation/LiberationSans-Italic", "liberation/LiberationSans-BoldItalic",
    "liberation/LiberationSansNarrow-Regular", "liberation/LiberationSansNarrow-Bold",
    "liberation/LiberationSerif-Regular", "liberation/LiberationSerif-Bold",
    "liberation/LiberationSerif-Italic", "liberation/LiberationSerif-BoldItalic",
    "liberation/LiberationMono-Regular", "liberation/LiberationMono-Bold",
    "freefont/FreeSans", "freefont/FreeSansBold", "freefont/FreeSansOblique",
    "freefont/FreeMono", "freefont/FreeMonoBold",
    "noto/NotoSerif-Regular", "noto/NotoSerif-Bold", "noto/NotoSerif-Italic",
    "noto/NotoSerifDisplay-Regular", "noto/NotoSerifDisplay-Bold",
)  # fmt: skip
HELD_OUT_FONTS = (  # the families Noto Sans (its display cut included) and FreeSerif
    "noto/NotoSans-Regular", "noto/NotoSans-Bold", "noto/NotoSans-Italic",
    "freefont/FreeSerif", "freefont/FreeSerifBold", "freefont/FreeSerifItalic",
)  # fmt: skip
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_held_out(word: str) -> bool:
    """Whether this word, in any case of letters, is of the tenth kept for measuring."""
    digest = hashlib.sha256(word.lower().encode()).digest()
    return digest[0] * 256 + digest[1] < 6554


class Font:
    """One face at one size, with what placing needs remembered for each character."""

    def __init__(self, name: str, size: int) -> None:
        path = FONTS / f"{name}.ttf"
        if not path.is_file():
            raise BadInput(
                f"no font {path}; install fonts-dejavu, fonts-liberation, fonts-freefont-ttf "
                "and fonts-noto-core"
            )
        self.face = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
        self.size = size
        self.ascent, self.descent = self.face.getmetrics()
        top = self.face.getbbox("x")[1]
        self._advances: dict[str, float] = {}
        self._extents: dict[str, tuple[int, int]] = {}
        self._middle = (int(top), self.ascent)  # from the top of an x to the baseline

    def advance(self, character: str) -> float:
        if character not in self._advances:
            self._advances[character] = self.face.getlength(character)
        return self._advances[character]

    def extent(self, character: str) -> tuple[int, int]:
        """Top and bottom of the ink, but at least those of an x: a full stop has a place too."""
        if character not in self._extents:
            box = self.face.getbbox(character)
            top, bottom = self._middle
            self._extents[character] = (min(top, int(box[1])), max(bottom, int(box[3])))
        return self._extents[character]

    def width(self, text: str) -> float:
        return self.face.getlength(text)


@lru_cache(maxsize=4096)
def font(name: str, size: int) -> Font:
    return Font(name, size)


@dataclass(frozen=True)
class Lexicon:
    """Words to draw and the faces to draw them in: one for training, one for measuring."""

    words: tuple[str, ...]
    fonts: tuple[str, ...]

    def face(self, random: Random, size: int) -> Font:
        return font(random.choice(self.fonts), size)

    def word(self, random: Random) -> str:
        """A word in some case of letters."""
        word = random.choice(self.words)
        kind = random.random()
        return word if kind < 0.6 else word.capitalize() if kind < 0.85 else word.upper()

    def piece(self, random: Random) -> str:
        """Mostly a word, else a number, a price, a code, a date or a time."""
        return self.word(random) if random.random() < 0.7 else number(random)


def number(random: Random) -> str:
    kind = random.randrange(6)
    if kind == 0:
        return str(random.randrange(10 ** random.randint(1, 6)))
    if kind == 1:
        return price(random)
    if kind == 2:
        return code(random)
    if kind == 3:
        return f"{random.randint(1, 28)} {random.choice(MONTHS)}"
    if kind == 4:
        return f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    return f"{random.randint(1, 99)}%"


def price(random: Random) -> str:
    amount = f"{random.randrange(10 ** random.randint(1, 3))}.{random.randint(0, 99):02}"
    return random.choice(("", "", "$", "€", "£")) + amount


def code(random: Random) -> str:
    letters = "".join(random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=random.randint(1, 3)))
    return letters + random.choice(("", "-")) + str(random.randrange(10 ** random.randint(1, 4)))


def rows(path: Path) -> Iterator[Any]:
    """The objects of a .jsonl.xz file. Raises BadInput when it is not there."""
    if not path.is_file():
        raise BadInput(f"no file {path}; --data is the folder that holds vision/ and text/")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def load_words(data: Path, least: int = 3) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held out): words of Tatoeba's English sentences, seen `least` times or more."""
    counts: Counter[str] = Counter()
    for row in rows(data / "text/tatoeba_english.jsonl.xz"):
        counts.update(re.findall(r"[a-z]{2,12}", row["text"].lower()))
    words = sorted(word for word, count in counts.items() if count >= least)
    return split(words)


def split(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kept = tuple(word for word in words if not is_held_out(word))
    return kept, tuple(word for word in words if is_held_out(word))
