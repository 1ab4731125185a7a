"""Drawn texts to read: windows full of text, lines of words, forms. Knows drawing and words.

Each drawer takes its randomness from the caller: the same seed draws the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nano_vl_draw import Colour, Drawing, any_colour, blank, ink_and_paper, luminance, worn
from nano_vl_words import (
    CHARACTERS,
    MONTHS,
    Font,
    Lexicon,
    code,
    font,
    number,
    price,
)
from PIL import Image

Turn = tuple[str, str, bool]  # question, answer, whether the answer was read letter by letter
ORDINALS = ("first", "second", "third", "fourth")
FIELDS = {
    "Name": "word", "Total": "price", "Date": "date", "Time": "time", "City": "word",
    "Price": "price", "Table": "number", "Room": "number", "Code": "code", "Item": "word",
    "Order": "number", "Street": "word", "Tax": "price", "Title": "word", "Seat": "code",
}  # fmt: skip


def window(
    random: Random, lexicon: Lexicon, height: int, width: int, variety: float = 1.0
) -> Drawing:
    """Full of text in several sizes and colours, cut at its edges: what every patch may look at.

    With `variety` below 1 sizes are near 20 px, faces are few and nearly all is dark on light: the
    tower must find out what a letter is before it can find out what all letters have in common.
    """
    ink, paper = ink_and_paper(random) if random.random() < variety else ((0, 0, 0), (255,) * 3)
    drawing = (
        blank(random, height, width, paper)
        if random.random() < variety
        else Drawing(Image.new("RGB", (width, height), paper))
    )
    few = lexicon.fonts[:: max(1, round(5 * (1 - variety)))]
    least, most = round(20 - 10 * variety), round(24 + 20 * variety)
    y = random.uniform(-12, 4)
    face = None
    while y < height - 6:
        if face is None or random.random() < 0.5:
            size = text_size(random, least, most)
            face = font(random.choice(few), size)
            if random.random() < 0.3 * variety:
                ink = legible(random, paper, ink)
        x = random.uniform(-size, size * 0.5)
        while x < width:
            piece = lexicon.piece(random) if random.random() < 0.8 else mixed(random)
            x = drawing.write(x, y, piece, face, ink)[2] + face.advance(" ") * random.uniform(
                0.8, 2
            )
        y += (face.ascent + face.descent) * random.uniform(0.85, 1.3)
    if random.random() < variety:
        worn(random, drawing)
    return drawing


def text_size(random: Random, least: int, most: int) -> int:
    """Pixels of a line, small ones more often than large ones."""
    return round(least * (most / least) ** random.random())


def mixed(random: Random) -> str:
    """Characters in no order, so that rare ones are met too."""
    return "".join(random.choices(CHARACTERS, k=random.randint(2, 7)))


def legible(random: Random, paper: Colour, ink: Colour) -> Colour:
    """Another colour that tells from the paper; `ink` where none is found."""
    for _ in range(4):
        colour = any_colour(random)
        if abs(luminance(colour) - luminance(paper)) > 70:
            return colour
    return ink


@dataclass(frozen=True)
class Layout:
    """How much is written, in pixels of the picture as it is shown."""

    least: int = 10  # size of the font
    most: int = 44
    characters: int = 60  # on the whole picture, about
    lines: int = 8
    words: int = 4  # of a line


def lines(
    random: Random, lexicon: Lexicon, height: int, width: int, layout: Layout
) -> tuple[Drawing, list[Turn]]:
    """Lines of one to four words; asked for all of it, or for one line."""
    scale = random.choice((1, 1, 1, 1.5, 2))
    drawing, ink = paper(random, height, width, scale)
    most = min(layout.most, round(height * 0.7))  # a line must be on the picture whole
    face = lexicon.face(random, round(text_size(random, layout.least, most) * scale))
    step = (face.ascent + face.descent) * random.uniform(1.0, 1.8)
    room = max(1, int(drawing.height / step))
    texts: list[str] = []
    left = layout.characters
    for _ in range(random.randint(1, min(room, layout.lines))):
        text = fitting(
            random,
            lexicon,
            face,
            drawing.width - 8,
            random.randint(1, layout.words),
        )
        if not text or (texts and len(text) > left):
            break
        texts.append(text)
        left -= len(text)
    if not texts:  # the face is too wide for any word found
        texts = [number(random)[:2]]
    y = random.uniform(0, max(0.0, drawing.height - step * len(texts)))
    starts = aligned(random, [face.width(text) for text in texts], drawing.width - 4)
    for text, x in zip(texts, starts, strict=True):
        drawing.write(2 + x, y, text, face, ink)
        y += step
    worn(random, drawing)
    return drawing, reading(random, texts, drawing.join(texts))


def aligned(random: Random, widths: Sequence[float], room: float) -> list[float]:
    """Where lines of these widths begin: as a block anywhere, left, centred or right, or each on
    its own."""
    longest = max(widths)
    block = random.random() * max(0.0, room - longest)
    share = random.choice((0.0, 0.0, 0.5, 1.0, None))
    if share is None:
        return [random.random() * max(0.0, room - width) for width in widths]
    return [block + share * (longest - width) for width in widths]


def reading(random: Random, texts: list[str], joined: str) -> list[Turn]:
    whole = random.choice(("Read the text.", "Read the text.", "What does it say?", "Read this."))
    turns: list[Turn] = [(whole, joined, True)]
    if len(texts) > 1 and random.random() < 0.5:
        place = random.randrange(min(len(texts), len(ORDINALS)))
        one = (f"Read the {ORDINALS[place]} line.", texts[place], True)
        turns.insert(random.randrange(2), one)
    return turns


def fitting(random: Random, lexicon: Lexicon, face: Font, width: float, count: int) -> str:
    """Up to `count` words that fit; an empty text if not even one was found to."""
    text = ""
    for _ in range(count):
        for _ in range(3):
            longer = f"{text} {lexicon.piece(random)}".strip()
            if face.width(longer) <= width:
                text = longer
                break
    return text


def paper(random: Random, height: int, width: int, scale: float) -> tuple[Drawing, Colour]:
    ink, ground = ink_and_paper(random)
    return blank(random, round(height * scale), round(width * scale), ground), ink


def form(
    random: Random, lexicon: Lexicon, height: int, width: int, layout: Layout,
    scales: Sequence[float] = (1, 1, 1.5, 2),
) -> tuple[Drawing, list[Turn]]:  # fmt: skip
    """A receipt, menu or form: names and values in lines, asked for some of the values.

    `scales`: how much larger than shown it may be drawn.
    """
    scale = random.choice(scales)
    drawing, ink = paper(random, height, width, scale)
    most = min(layout.most, width // 7)
    face = lexicon.face(
        random, round(text_size(random, layout.least, max(most, layout.least)) * scale)
    )
    step = (face.ascent + face.descent) * random.uniform(1.05, 1.8)
    room = max(1, min(6, int(drawing.height / step)))
    names = random.sample(tuple(FIELDS), min(len(FIELDS), random.randint(min(2, room), room)))
    split = max(face.width(f"{name}: ") for name in names)
    ranged = random.random() < 0.5
    y = random.uniform(0, max(0.0, drawing.height - step * len(names)))
    values = {}
    for name in names:
        value = field_value(random, lexicon, FIELDS[name])
        if face.width(value) > drawing.width - split - 4:
            value = str(random.randint(2, 99))
        values[name] = value
        drawing.write(2, y, f"{name}:", face, ink)
        x = drawing.width - face.width(value) - 3 if ranged else 2 + split
        drawing.write(max(x, 2 + face.width(f"{name}: ")), y, value, face, ink)
        y += step
    worn(random, drawing)
    asked = random.sample(names, min(len(names), 4))
    return drawing, [(f"What is the {name.lower()}?", values[name], True) for name in asked]


def field_value(random: Random, lexicon: Lexicon, kind: str) -> str:
    if kind == "word":
        return lexicon.word(random)
    if kind == "price":
        return price(random)
    if kind == "code":
        return code(random)
    if kind == "time":
        return f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    if kind == "date":
        return f"{random.randint(1, 28)} {random.choice(MONTHS)}"
    return str(random.randint(1, 9999))
