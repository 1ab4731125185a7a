"""A picture being drawn, with what lies where: characters, shapes, colours. Knows no questions.

A picture is drawn at one size and may be shown at another; what lies where is noted in the drawn
picture's pixels and laid on the patches of the shown one at the end.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from nano_vl_words import CLASS_OF, Font
from PIL import Image, ImageDraw, ImageFilter

PATCH, CELL_WIDTH, CELL_HEIGHT = 16, 4, 8  # a patch holds 2 x 4 cells
CELLS = 8
TOKEN = 32

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Drawing:
    """Pixels and notes, in the order of drawing: (box, class), and (box, kind, colour)."""

    image: Image.Image
    characters: list[tuple[Box, int]] = field(default_factory=list)
    things: list[tuple[Box, int, int]] = field(default_factory=list)
    written: dict[str, list[Box | None]] = field(default_factory=dict)  # where letters lie

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def write(self, x: float, y: float, text: str, font: Font, colour: Colour) -> Box:
        """Write with the top of the line at `y`; returns the line's box."""
        x, y = round(x), round(y)
        self.pen.text((x, y), text, font=font.face, fill=colour)
        right = float(x)
        boxes: list[Box | None] = []
        for character in text:
            left, right = right, right + font.advance(character)
            boxes.append(None)
            if character in CLASS_OF:
                top, bottom = font.extent(character)
                box = (left, y + top, right, y + bottom)
                boxes[-1] = box
                self.characters.append((box, CLASS_OF[character]))
        self.written.setdefault(text, boxes)
        return (x, y, right, y + font.ascent + font.descent)

    def shown(self, height: int, width: int) -> Shown:
        """The picture at this size (multiples of 16), and its labels."""
        scale = (width / self.width, height / self.height)
        image = self.image
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        cells = np.zeros((height // CELL_HEIGHT, width // CELL_WIDTH), np.uint8)
        for box, label in self.characters:
            fill(cells, box, (scale[0] / CELL_WIDTH, scale[1] / CELL_HEIGHT), label)
        kinds = np.zeros((height // PATCH, width // PATCH), np.int16)
        colours = np.zeros_like(kinds)
        for box, kind, colour in self.things:
            fill(kinds, box, (scale[0] / PATCH, scale[1] / PATCH), kind)
            fill(colours, box, (scale[0] / PATCH, scale[1] / PATCH), colour)
        places = {
            text: [token_of(box, scale, width) for box in boxes]
            for text, boxes in self.written.items()
        }
        return Shown(np.asarray(image), by_patch(cells), kinds.ravel(), colours.ravel(), places)

    def join(self, texts: Sequence[str]) -> str:
        """Texts as lines of one text, which lies where they lie; a break lies where the next line
        begins, so that whoever is to write one looks whether there is a line at all."""
        whole, boxes = "\n".join(texts), list[Box | None]()
        for text in texts:
            own = self.written.get(text, [None] * len(text))
            boxes += [*own[:1], *own] if boxes else own
        self.written[whole] = boxes
        return whole


@dataclass(frozen=True)
class Shown:
    """pixels (height, width, 3) uint8; cells (patches, 8), kinds and colours (patches,): labels.

    `places`: for each text that was written, which token of the picture each letter lies on.
    """

    pixels: np.ndarray
    cells: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray
    places: Mapping[str, list[int]] = field(default_factory=dict)

    def patches(self) -> np.ndarray:
        """(patches, 768) float32 in -1..1, ordered as by the published processor."""
        height, width, _ = self.pixels.shape
        cut = self.pixels.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3)
        flat = cut.transpose(0, 2, 1, 3, 4).reshape(-1, PATCH * PATCH * 3)
        return flat.astype(np.float32) * np.float32(2 / 255) - 1


def token_of(box: Box | None, scale: tuple[float, float], width: int) -> int:
    """The token (32 x 32 pixels) under the middle of a box; -1 for none."""
    if box is None:
        return -1
    x, y = (box[0] + box[2]) / 2 * scale[0], (box[1] + box[3]) / 2 * scale[1]
    return int(y // TOKEN) * (width // TOKEN) + int(min(x, width - 1) // TOKEN)


def fill(grid: np.ndarray, box: Box, scale: tuple[float, float], label: int) -> None:
    """Label what has its centre in the box; `scale` turns pixels into places of `grid`."""
    left, right = (round(box[i] * scale[0]) for i in (0, 2))
    top, bottom = (round(box[i] * scale[1]) for i in (1, 3))
    grid[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = label


def by_patch(cells: np.ndarray) -> np.ndarray:
    """(rows * 2, columns * 4) -> (rows * columns, 8)."""
    rows, columns = cells.shape[0] // 2, cells.shape[1] // 4
    return cells.reshape(rows, 2, columns, 4).transpose(0, 2, 1, 3).reshape(-1, CELLS)


def luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def any_colour(random: Random) -> Colour:
    return (random.randrange(256), random.randrange(256), random.randrange(256))


def ink_and_paper(random: Random) -> tuple[Colour, Colour]:
    """Two colours that tell from each other: mostly dark on light."""
    kind = random.random()
    if kind < 0.35:
        dark, light = random.randrange(60), random.randrange(225, 256)
        ink, paper = (dark,) * 3, (light,) * 3
        return (ink, paper) if random.random() < 0.8 else (paper, ink)
    while True:
        ink, paper = any_colour(random), any_colour(random)
        if kind < 0.7:  # tinted paper
            paper = tuple(255 - c // 5 for c in paper)  # type: ignore[assignment]
        if abs(luminance(ink) - luminance(paper)) > 70:
            return ink, paper


def blank(random: Random, height: int, width: int, paper: Colour) -> Drawing:
    """Plain ground, sometimes shaded from one side to another, sometimes grained."""
    kind = random.random()
    if kind < 0.6:
        return Drawing(Image.new("RGB", (width, height), paper))
    ground = np.empty((height, width, 3), np.float32)
    ground[:] = paper
    if kind < 0.8:
        along = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        if random.random() < 0.5:
            along = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
        ground += along * np.array([random.uniform(-25, 25) for _ in range(3)], np.float32)
    else:
        grain = np.random.default_rng(random.getrandbits(32))
        step = random.choice((1, 2, 4))
        noise = grain.standard_normal((height // step, width // step, 1), np.float32)
        ground += noise.repeat(step, 0).repeat(step, 1) * random.uniform(2, 12)
    return Drawing(Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)))


def worn(random: Random, drawing: Drawing) -> None:
    """Blur or save as JPEG: what pictures go through. Notes stay true: nothing moves."""
    kind = random.random()
    if kind < 0.08:
        drawing.image = drawing.image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9)))
    elif kind < 0.2:
        kept = io.BytesIO()
        drawing.image.save(kept, "JPEG", quality=random.randint(40, 90))
        drawing.image = Image.open(kept).convert("RGB")
