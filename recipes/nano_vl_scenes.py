"""Drawn scenes, with questions and answers about them: shapes, small pictures, flags, clocks, bars.

Knows drawing; knows no tokens. Things stand in the places of a 3 x 3 grid, none over another, so
that where they are, left of what and above what has one answer. A tenth of all pairs of shape and
colour, and of all small pictures, is held out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from nano_vl_draw import Colour, Drawing, any_colour, blank, luminance, worn
from nano_vl_texts import Turn
from nano_vl_words import Lexicon, is_held_out
from PIL import Image

COLOURS: dict[str, Colour] = {
    "red": (215, 30, 35), "green": (25, 150, 60), "blue": (35, 70, 210), "yellow": (250, 220, 40),
    "orange": (250, 140, 20), "purple": (130, 45, 165), "brown": (120, 72, 35),
    "black": (18, 18, 18), "white": (248, 248, 248),
}  # fmt: skip
# Colours that are never asked about: a shape is to be known by its outline, whatever its colour.
UNNAMED = "unnamed"
STRANGE: tuple[Colour, ...] = (
    (250, 150, 190), (128, 128, 128), (60, 200, 200), (135, 130, 20), (165, 230, 70),
    (190, 160, 240), (240, 200, 165), (140, 190, 250), (90, 100, 120), (150, 20, 80),
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom",
    "bottom right",
)  # fmt: skip
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
# Small pictures with plain names, by their names in the data folder.
OBJECTS = (
    "rainbow", "volcano", "tulip", "rose", "sunflower", "mushroom", "tomato", "grapes",
    "watermelon", "lemon", "banana", "pineapple", "pear", "cherries", "strawberry", "hamburger",
    "bread", "cookie", "balloon", "guitar", "violin", "trumpet", "trophy", "cow", "tiger", "cat",
    "crocodile", "whale", "snail", "snake", "sheep", "rooster", "dog", "pig", "elephant",
    "octopus", "fish", "turtle", "penguin", "eye", "ear", "crown", "eyeglasses", "necktie",
    "jeans", "dress", "ghost", "skull", "bomb", "camera", "television", "radio", "key", "bell",
    "hammer", "telescope", "rocket", "helicopter", "tram", "bus", "ambulance", "taxi", "tractor",
    "bicycle", "bed", "door", "toilet", "croissant", "avocado", "carrot", "egg", "pie", "crab",
    "duck", "butterfly", "lobster", "onion", "chair", "ladder", "umbrella", "snowman", "anchor",
    "airplane", "envelope", "pencil", "snowflake",
)  # fmt: skip
# Classes of the label of a patch: 0 nothing, then shapes, then small pictures, then a flag.
KINDS = {name: i + 1 for i, name in enumerate((*SHAPES, *OBJECTS))}
COLOUR_CLASS = {name: i + 1 for i, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str | None  # None: a small picture
    place: int  # of the 3 x 3 grid, row by row

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}" if self.colour else self.shape


def pair_held_out(shape: str, colour: str) -> bool:
    return is_held_out(f"{colour} {shape}!")


@dataclass(frozen=True)
class Gallery:
    """Small pictures and flags of the data folder, opened when first used."""

    data: Path

    @lru_cache(maxsize=2048)  # noqa: B019 - one gallery lives as long as the program
    def picture(self, path: str) -> Image.Image:
        with Image.open(self.data / "vision" / path) as image:
            return image.convert("RGBA")

    @lru_cache(maxsize=1)  # noqa: B019
    def emoji(self) -> dict[str, str]:
        """Name -> file."""
        listed = json.loads((self.data / "vision/emoji/names.json").read_text("utf-8"))
        return {row["unicode_name"]: f"emoji/{row['file']}" for row in listed}

    @lru_cache(maxsize=1)  # noqa: B019
    def flags(self) -> dict[str, str]:
        listed = json.loads((self.data / "vision/flags/names.json").read_text("utf-8"))
        return {row["country"]: f"flags/{row['file']}" for row in listed}


def objects(held_out: bool) -> tuple[str, ...]:
    return tuple(name for name in OBJECTS if is_held_out(name) == held_out)


def outline(
    shape: str, x: float, y: float, r: float, turn: float = 0.0
) -> list[tuple[float, float]]:
    """The corners of a shape of this radius around (x, y)."""
    if shape == "heart":
        ts = [i * math.pi / 20 for i in range(40)]
        return [
            (x + r * math.sin(t) ** 3,
             y - r / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)
                           - math.cos(4 * t)))
            for t in ts
        ]  # fmt: skip
    if shape == "cross":
        w = r / 3
        corners = [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w),
                   (-r, w), (-r, -w), (-w, -w)]  # fmt: skip
        c, s = math.cos(turn), math.sin(turn)
        return [(x + a * c - b * s, y + a * s + b * c) for a, b in corners]
    count, dent = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.42)}[shape]
    start = turn - math.pi / 2 + (math.pi / 4 if shape == "square" else 0)
    if dent == 1.0:
        return [
            (x + r * math.cos(start + 2 * math.pi * i / count),
             y + r * math.sin(start + 2 * math.pi * i / count)) for i in range(count)
        ]  # fmt: skip
    return [
        (x + (r if i % 2 == 0 else r * dent) * math.cos(start + math.pi * i / count),
         y + (r if i % 2 == 0 else r * dent) * math.sin(start + math.pi * i / count))
        for i in range(2 * count)
    ]  # fmt: skip


def near(random: Random, colour: Colour) -> Colour:
    return tuple(min(255, max(0, c + random.randint(-18, 18))) for c in colour)  # type: ignore[return-value]


def draw_shape(
    random: Random, drawing: Drawing, thing: Thing, colour: Colour, x: float, y: float, r: float
) -> None:
    assert thing.colour is not None
    fill = near(random, colour)
    if thing.shape == "circle":
        drawing.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif thing.shape == "ring":
        drawing.pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, round(r / 3)))
    else:
        drawing.pen.polygon(outline(thing.shape, x, y, r, random.uniform(-0.25, 0.25)), fill=fill)
    drawing.things.append(
        ((x - r, y - r, x + r, y + r), KINDS[thing.shape], COLOUR_CLASS.get(thing.colour, 0))
    )


def ground(random: Random, colours: set[Colour]) -> Colour:
    """A ground that no colour of the scene is lost on."""
    while True:
        paper = any_colour(random)
        if random.random() < 0.7:
            paper = (
                tuple(215 + c // 6 for c in paper)
                if random.random() < 0.7
                else tuple(  # type: ignore[assignment]
                    c // 5 for c in paper
                )
            )
        distances = [sum(abs(a - b) for a, b in zip(paper, c, strict=True)) for c in colours]
        light = [abs(luminance(paper) - luminance(c)) for c in colours]
        if all(d > 150 or g > 60 for d, g in zip(distances, light, strict=True)):
            return paper


@dataclass(frozen=True)
class Scenes:
    """Draws scenes. `held_out`: every scene shows a pair (or picture) never met in training."""

    gallery: Gallery
    held_out: bool = False

    def shapes(self, random: Random, height: int, width: int) -> tuple[Drawing, list[Thing]]:
        """One to five (seldom to nine) shapes on a ground."""
        count = random.choice((1, 2, 3, 4, 5, 5, 3, 4, random.randint(6, 9)))
        pairs = [p for p in PAIRS if not pair_held_out(*p)]
        if random.random() < 0.4:  # few kinds: then there is something to count
            pairs = random.sample(pairs, 3)
        chosen = [random.choice(pairs) for _ in range(count)]
        if self.held_out:
            chosen[0] = random.choice([p for p in PAIRS if pair_held_out(*p)])
        places = random.sample(range(9), count)
        palette = dict(COLOURS)
        if not self.held_out and random.random() < 0.4:
            palette[UNNAMED] = random.choice(STRANGE)
            chosen = [(s, UNNAMED if random.random() < 0.5 else c) for s, c in chosen]
        things = [Thing(*pair, place) for pair, place in zip(chosen, places, strict=True)]
        paper = ground(random, {palette[colour] for _, colour in chosen})
        drawing = blank(random, 2 * height, 2 * width, paper)
        for thing in things:
            x, y, r = self.spot(random, drawing, thing.place)
            draw_shape(random, drawing, thing, palette[str(thing.colour)], x, y, r)
        worn(random, drawing)
        return drawing, things

    def pictures(self, random: Random, height: int, width: int) -> tuple[Drawing, list[Thing]]:
        """One to four small pictures on a ground."""
        count = random.choice((1, 1, 2, 3, 4))
        names = random.choices(objects(self.held_out), k=count)
        if random.random() < 0.3:
            names = [names[0]] * count
        places = random.sample(range(9), count)
        paper: Colour = tuple(235 - random.randrange(40) for _ in range(3))  # type: ignore[assignment]
        drawing = blank(random, 2 * height, 2 * width, paper)
        things = [Thing(name, None, place) for name, place in zip(names, places, strict=True)]
        for thing in things:
            x, y, r = self.spot(random, drawing, thing.place, least=0.75)
            side = round(2 * r)
            picture = self.gallery.picture(self.gallery.emoji()[thing.shape]).resize((side, side))
            drawing.image.paste(picture, (round(x - r), round(y - r)), picture)
            drawing.things.append(((x - r, y - r, x + r, y + r), KINDS[thing.shape], 0))
        worn(random, drawing)
        return drawing, things

    @staticmethod
    def spot(
        random: Random, drawing: Drawing, place: int, least: float = 0.5
    ) -> tuple[float, float, float]:
        """Centre and radius somewhere within a place of the grid."""
        wide, high = drawing.width / 3, drawing.height / 3
        r = min(wide, high) / 2 * random.uniform(least, 0.95)
        x = (place % 3) * wide + random.uniform(r, wide - r)
        y = (place // 3) * high + random.uniform(r, high - r)
        return x, y, r


# Questions. Each asker returns turns, or nothing where the scene has no such question.


def a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(shape: str) -> str:
    return {"cross": "crosses"}.get(shape, shape + "s")


def ask(random: Random, things: list[Thing], kind: str) -> Turn | None:
    """One question of this kind: what, many, colour, where, is_there, relation."""
    if kind == "many":
        return ask_many(random, things)
    if kind == "colour":
        return ask_colour(random, things)
    single = len(things) == 1
    things = [thing for thing in things if thing.colour != UNNAMED]
    names = [thing.name for thing in things]
    alone = [thing for thing in things if names.count(thing.name) == 1]
    if not things:
        return None
    if kind == "what":
        if single:
            return random.choice(("What is this?", "What is in the picture?")), a(names[0]), False
        thing = random.choice(things)
        return f"What is at the {PLACES[thing.place]}?", a(thing.name), False
    if kind == "where":
        if random.random() < 0.1 and things[0].colour:  # asked for what is not there
            name = f"{random.choice(list(COLOURS))} {random.choice(SHAPES)}"
            return (
                None if name in names else (f"Where is the {name}?", f"There is no {name}.", False)
            )
        if not alone:
            return None
        thing = random.choice(alone)
        return f"Where is the {thing.name}?", PLACES[thing.place], False
    if kind == "is_there":
        return ask_there(random, things)
    return ask_relation(random, alone)


def ask_colour(random: Random, things: list[Thing]) -> Turn | None:
    shapes = [thing.shape for thing in things]
    single = [t for t in things if t.colour in COLOURS and shapes.count(t.shape) == 1]
    if not single:
        return None
    thing = random.choice(single)
    word = random.choice(("Which colour is", "What color is"))
    return f"{word} the {thing.shape}?", str(thing.colour), False


def ask_many(random: Random, things: list[Thing]) -> Turn:
    kind = random.random()
    drawn = things[0].colour is not None
    if kind < 0.5 or not drawn:
        word = "shapes" if drawn else "things"
        return f"How many {word} are there?", NUMBERS[len(things)], False
    # As often as not something that is there more than once, or not at all.
    if kind < 0.75:
        shape = random.choice(SHAPES) if random.random() < 0.3 else random.choice(things).shape
        count = sum(t.shape == shape for t in things)
        return f"How many {plural(shape)} are there?", NUMBERS[count], False
    colour = random.choice(list(COLOURS)) if random.random() < 0.3 else random.choice(things).colour
    if colour == UNNAMED:
        colour = random.choice(list(COLOURS))
    count = sum(t.colour == colour for t in things)
    return f"How many {colour} shapes are there?", NUMBERS[count], False


def ask_there(random: Random, things: list[Thing]) -> Turn:
    """Yes as often as no; a no is often nearly right: the shape in another colour."""
    if random.random() < 0.5:
        return f"Is there {a(random.choice(things).name)}?", "yes", False
    names = {thing.name for thing in things}
    while (other := absent(random, things)) in names:
        pass
    return f"Is there {a(other)}?", "no", False


def absent(random: Random, things: list[Thing]) -> str:
    """A name that may well not be among the things."""
    if things[0].colour is None:
        return random.choice(objects(False))
    shape, colour = random.choice(things).shape, random.choice(things).colour
    kind = random.random()
    if kind < 0.4:
        return f"{colour} {shape}"  # both are there, not always together
    if kind < 0.6:
        return f"{random.choice(list(COLOURS))} {shape}"
    return f"{random.choice(list(COLOURS))} {random.choice(SHAPES)}"


def ask_relation(random: Random, alone: list[Thing]) -> Turn | None:
    """Is A left of B? Both are there once; their places differ in that direction."""
    if len(alone) < 2:
        return None
    one, other = random.sample(alone, 2)
    across = one.place % 3 - other.place % 3
    down = one.place // 3 - other.place // 3
    kinds = [k for k, d in (("across", across), ("down", down)) if d]
    way = random.choice(kinds)
    true = {"across": "left of" if across < 0 else "right of",
            "down": "above" if down < 0 else "below"}[way]  # fmt: skip
    false = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[true]
    yes = random.random() < 0.5
    return (
        f"Is the {one.name} {true if yes else false} the {other.name}?",
        "yes" if yes else "no",
        False,
    )


def about(question: str, things: list[Thing]) -> Thing | None:
    """The one thing that must be looked at to answer; None where there is no such."""
    words = question.removesuffix("?")
    if words in ("What is this", "What is in the picture"):
        return things[0]
    if words.startswith("What is at the "):
        place = words.removeprefix("What is at the ")
        return next((thing for thing in things if PLACES[thing.place] == place), None)
    for relation in (" left of ", " right of ", " above ", " below "):
        words = words.split(relation)[0]
    found = [thing for thing in things if words.endswith(f" {thing.name}")]
    found = found or [thing for thing in things if words.endswith(f" the {thing.shape}")]
    return found[0] if len(found) == 1 else None


KINDS_OF_QUESTION = ("what", "many", "colour", "where", "is_there", "relation")


def questions(random: Random, things: list[Thing], count: int) -> list[Turn]:
    """Up to `count` questions of different kinds, in any order."""
    kinds = random.sample(KINDS_OF_QUESTION, len(KINDS_OF_QUESTION))
    turns = [turn for kind in kinds if (turn := ask(random, things, kind))]
    return turns[:count]


# Single pictures of other kinds.


def flag(random: Random, gallery: Gallery, height: int, width: int) -> tuple[Drawing, list[Turn]]:
    country = random.choice([c for c in gallery.flags() if not is_held_out(c)])
    paper: Colour = tuple(200 + random.randrange(50) for _ in range(3))  # type: ignore[assignment]
    drawing = blank(random, height, width, paper)
    picture = gallery.picture(gallery.flags()[country])
    scale = min(width / picture.width, height / picture.height) * random.uniform(0.6, 0.95)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size)
    x, y = random.randint(0, width - size[0]), random.randint(0, height - size[1])
    drawing.image.paste(picture, (x, y), picture)
    return drawing, [("Which country has this flag?", country, False)]


def clock(random: Random, lexicon: Lexicon, height: int, width: int) -> tuple[Drawing, list[Turn]]:
    """A clock face at some five minutes."""
    hour, minute = random.randint(1, 12), 5 * random.randrange(12)
    side = 2 * min(height, width)
    paper: Colour = tuple(225 + random.randrange(30) for _ in range(3))  # type: ignore[assignment]
    drawing = Drawing(Image.new("RGB", (2 * width, 2 * height), paper))
    x, y, r = width, height, side * random.uniform(0.38, 0.47)
    ink: Colour = tuple(random.randrange(80) for _ in range(3))  # type: ignore[assignment]
    drawing.pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=max(2, side // 60))
    face = lexicon.face(random, max(8, round(r * 0.17)))
    for number in range(1, 13):
        angle = number * math.pi / 6
        text = str(number)
        drawing.write(
            x + 0.8 * r * math.sin(angle) - face.width(text) / 2,
            y - 0.8 * r * math.cos(angle) - (face.ascent + face.descent) / 2, text, face, ink,
        )  # fmt: skip
    for part, length, thick in ((hour % 12 / 12 + minute / 720, 0.42, 22), (minute / 60, 0.68, 36)):
        angle = part * 2 * math.pi
        end = (x + length * r * math.sin(angle), y - length * r * math.cos(angle))
        drawing.pen.line((x, y, *end), fill=ink, width=max(2, side // thick))
    return drawing, [("What time is it?", f"{hour}:{minute:02}", True)]


def bars(random: Random, lexicon: Lexicon, height: int, width: int) -> tuple[Drawing, list[Turn]]:
    """Two to five bars in different colours with their values above them."""
    count = random.randint(2, 5)
    values = random.sample(range(1, 100), count)
    names = random.sample(list(COLOURS)[:7], count)
    drawing = Drawing(Image.new("RGB", (2 * width, 2 * height), "white"))
    face = lexicon.face(random, random.randint(24, 44))
    room, wide = 2 * height - face.size * 1.6, 2 * width / count
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        left, right = wide * (i + 0.2), wide * (i + 0.8)
        top = 2 * height - room * value / max(values)
        drawing.pen.rectangle((left, top, right, 2 * height), fill=near(random, COLOURS[name]))
        drawing.things.append(((left, top, right, 2 * height), 0, COLOUR_CLASS[name]))
        text = str(value)
        x = (left + right - face.width(text)) / 2
        drawing.write(x, top - face.ascent - face.descent, text, face, (20, 20, 20))
    i, tall = random.randrange(count), values.index(max(values))
    turns: list[Turn] = [
        ("Which bar is the tallest?", names[tall], False),
        (f"What is the value of the {names[i]} bar?", str(values[i]), True),
        ("How many bars are there?", NUMBERS[count], False),
    ]
    return drawing, random.sample(turns, 3)


def photograph(random: Random, height: int, width: int) -> tuple[Drawing, list[Turn]]:
    """Clouds of colour in all sizes, as little drawn as a photograph: nothing to be told of it."""
    grain = np.random.default_rng(random.getrandbits(32))
    total = np.zeros((height, width, 3), np.float32)
    steepness = random.uniform(0.6, 1.4)
    for octave in range(6):
        side = 3 * 2**octave
        rough = np.tanh(random.choice((1, 3)) * grain.standard_normal((side, side, 3), np.float32))
        if random.random() < 0.5:
            rough = rough.mean(2, keepdims=True) * np.array(
                [1, random.random(), random.random()], np.float32
            )
        small = Image.fromarray((127 + 80 * np.clip(rough, -1.5, 1.5)).astype(np.uint8))
        ways = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        large = small.resize((width, height), random.choice(ways))
        total += (np.asarray(large, np.float32) - 127) * 2 ** (-steepness * octave)
    middle = np.array([random.uniform(60, 190) for _ in range(3)], np.float32)
    pixels = np.clip(total * random.uniform(0.5, 1.3) + middle, 0, 255).astype(np.uint8)
    asked = random.sample(UNTOLD, 2)
    return Drawing(Image.fromarray(pixels)), [(q, CANNOT_TELL, False) for q in asked]


UNTOLD = (
    "What is this?", "What is in the picture?", "Describe the picture.", "What do you see?",
    "What is in this image?", "Describe this image.", "Who is this?",
)  # fmt: skip
CANNOT_TELL = "I can't tell: I only know drawings and text."
