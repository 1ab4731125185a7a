"""What a step of training sees: pictures of one shape together, with labels, questions, answers.

A step's pictures depend on seed and step alone. Knows drawing and tokens; knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from nano_vl_draw import CELL_HEIGHT, CELL_WIDTH, PATCH, Drawing, Shown, by_patch, fill
from nano_vl_scenes import (
    Gallery,
    Scenes,
    about,
    ask_many,
    bars,
    clock,
    flag,
    photograph,
    questions,
)
from nano_vl_texts import Layout, Turn, form, lines, window
from nano_vl_tokens import PAD, Scribe, words_of
from nano_vl_words import Lexicon, rows
from torch import Tensor

Drawer = Callable[[], tuple[Drawing, list[Turn]]]

PATCHES = 1024  # of one part of a step; twice as many where the tower only looks
LABELLED = 0.25  # of what is read: windows teach the tower letters, answers wait for the backbone
CANVAS, CANVASES = 512, 24  # windows are cut from a few larger sheets, renewed one by one
STEPS_A_SHEET = 3
SIZES = {  # rows and columns of tokens, 32 pixels each
    "crop": ((1, 2), (1, 3), (1, 4), (1, 4), (1, 5), (2, 2), (2, 3), (2, 4)),
    "small": ((4, 4), (2, 8), (3, 6), (4, 6), (4, 8), (5, 5)),
    "middle": ((6, 6), (8, 8), (6, 10), (4, 12), (8, 6), (7, 9), (8, 8)),
    "large": ((10, 10), (12, 12), (12, 16), (16, 12), (14, 14), (16, 16), (16, 16)),
}
WINDOW_SIZES = ((4, 4), (4, 8), (6, 6), (8, 8), (8, 8), (3, 8), (12, 12), (16, 16), (16, 16))
LAYOUTS = {
    "crop": Layout(characters=12, lines=1, words=1),
    "small": Layout(characters=30),
    "middle": Layout(least=12, characters=60),
    "large": Layout(least=14, characters=110),
}
SPARSE = Layout(least=16, characters=45, lines=5, words=1)  # a few words, one below the other
SPARSELY = 0.7  # of larger pages
COUNTED = 3  # more questions of how many for each scene: they are learned last
SCENE_SIZES = (
    (4, 4),
    (4, 4),
    (4, 4),
    (5, 5),
    (4, 6),
    (6, 4),
    (6, 6),
    (6, 6),
    (8, 8),
    (8, 8),
    (12, 12),
    (16, 16),
)
GREETINGS = (
    ("Hello!", "Hello! Show me a drawing, a sign or a form, and ask me about it."),
    ("Hi", "Hello! Show me a drawing, a sign or a form, and ask me about it."),
    ("Hello", "Hello! Show me a drawing, a sign or a form, and ask me about it."),
    ("What can you do?", "I read short texts and tell shapes, colours and places in drawings."),
    ("Who are you?", "I am nano-vl, a very small model that reads drawings."),
    ("What is in the picture?", "I see no picture. Please send one."),
    ("Read the text.", "I see no picture. Please send one."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
)


@dataclass(frozen=True)
class Part:
    """Pictures of one shape, or conversation without pictures (`patches` None).

    patches (n, rows * columns, 768); cells (n, patches, 8), kinds and colours (n, patches); ids and
    answers (n, tokens): what follows the picture, and where the model speaks; looks (n, tokens):
    the token of the picture that a letter is read from, or -1. `labelled`: the tower learns too.
    """

    name: str
    rows: int
    columns: int
    patches: Tensor | None
    cells: Tensor | None
    kinds: Tensor | None
    colours: Tensor | None
    ids: Tensor | None = None
    answers: Tensor | None = None
    looks: Tensor | None = None
    labelled: bool = True


def chat(data: Path) -> list[Turn]:
    """Small talk: greetings of our own, and Microsoft's PersonalityChat (MIT)."""
    said = [
        (row["q"], row["a"], False) for row in rows(data / "text/chitchat_professional.jsonl.xz")
    ]
    return [(question, answer, False) for question, answer in GREETINGS * 40] + said


def vocabulary(gallery: Gallery, talk: list[Turn]) -> list[str]:
    """Every word of our questions and answers, and the frequent ones of small talk."""
    from nano_vl_scenes import (
        CANNOT_TELL,
        COLOURS,
        NUMBERS,
        OBJECTS,
        PLACES,
        SHAPES,
        UNTOLD,
        plural,
    )
    from nano_vl_texts import FIELDS, ORDINALS

    named = (*COLOURS, *SHAPES, *map(plural, SHAPES), *OBJECTS, *NUMBERS, *PLACES)
    ours = [text for name in named for text in (name, f" {name}")]
    ours += [CANNOT_TELL, *UNTOLD, *gallery.flags(), "shapes things shape thing"]
    ours += [f" {name.lower()}" for name in (*FIELDS, *ORDINALS)]
    ours += [text for pair in GREETINGS for text in pair] + [answer for _, answer, _ in talk]
    ours += [
        "What is at the", "Which colour is the", "What color is the", "Where is the", "There is no",
        "How many are there", "Is there a", "Is there an", "a red", "an orange", "left of right of",
        "Is the above the below the", "yes no", "Read the text. Read this. What does it say",
        "Read the first line.", "There is no text.", "What time is it", "Which bar is the tallest",
        "What is the value of the bar", "How many bars", "Which country has this flag",
        "What is the", "user", "assistant", "system",
    ]  # fmt: skip
    return list(dict.fromkeys([*words_of(ours), *words_of((q for q, _, _ in talk), least=12)]))


@dataclass(frozen=True)
class Sheet:
    """A drawing with the class of the character over each of its pixels: quickly cut."""

    pixels: np.ndarray
    characters: np.ndarray

    @classmethod
    def of(cls, drawing: Drawing) -> Sheet:
        characters = np.zeros((drawing.height, drawing.width), np.uint8)
        for box, label in drawing.characters:
            fill(characters, box, (1, 1), label)
        return cls(np.asarray(drawing.image), characters)

    def cut(self, x: int, y: int, width: int, height: int) -> Shown:
        """A window at its own size. A cell is what its middle is."""
        own = self.characters[y : y + height, x : x + width]
        cells = own[CELL_HEIGHT // 2 :: CELL_HEIGHT, CELL_WIDTH // 2 :: CELL_WIDTH]
        nothing = np.zeros(height * width // PATCH**2, np.int16)
        return Shown(self.pixels[y : y + height, x : x + width], by_patch(cells), nothing, nothing)


@dataclass
class Batches:
    """Draws steps. `horizon`: the step at which large pictures have their full share.

    Reading is learned from single words first: many pictures, each with one thing to find.
    """

    lexicon: Lexicon
    gallery: Gallery
    scribe: Scribe
    talk: list[Turn]
    seed: int
    warm_up: int
    horizon: int

    def __post_init__(self) -> None:
        self.scenes = Scenes(self.gallery)
        self._sheets: dict[int, Sheet] = {}

    def labelled(self, step: int) -> Iterator[Part]:
        """Pictures without questions, for the tower alone."""
        random = Random(f"{self.seed}/{step}")
        yield self.windows(random, step)
        yield self.windows(random, step) if step % 3 else self.scene(random, asked=False)

    def step(self, step: int) -> Iterator[Part]:
        if step < self.warm_up:
            yield from self.labelled(step)
            return
        random = Random(f"{self.seed}/{step}")
        crop = random.random() < self.cropped(step)
        yield self.reading(random, step, "lines" if random.random() < 0.7 else "form", crop)
        yield self.reading(random, step, "lines" if random.random() < 0.7 else "form")
        yield self.scene(random, asked=True)
        for _ in range(2):  # letters are what reading waits for
            yield self.windows(random, step)
        if step % 8 == 0:
            yield self.other(random)
        if step % 10 == 5:
            yield self.conversation(random)

    def cropped(self, step: int) -> float:
        """How often the first part to read is of single words: at first always."""
        return max(0.1, 1 - 2 * (step - self.warm_up) / max(1, self.horizon))

    def sheet(self, index: int) -> Sheet:
        """One of the sheets that windows are cut from; drawn anew when it is not kept."""
        if index not in self._sheets:
            for old in [i for i in self._sheets if i < index - 2 * CANVASES]:
                del self._sheets[old]
            random = Random(f"{self.seed}/sheet/{index}")
            variety = min(1.0, 0.3 + index / 100)
            self._sheets[index] = Sheet.of(window(random, self.lexicon, CANVAS, CANVAS, variety))
        return self._sheets[index]

    def windows(self, random: Random, step: int) -> Part:
        height, width = random.choice(WINDOW_SIZES)
        height, width = 32 * height, 32 * width
        shown = []
        for _ in range(max(1, PATCHES // (height * width // PATCH**2))):
            sheet = self.sheet(step // STEPS_A_SHEET + random.randrange(CANVASES))
            x, y = random.randrange(CANVAS - width + 1), random.randrange(CANVAS - height + 1)
            shown.append(sheet.cut(x, y, width, height))
        return self.part("window", shown, None)

    def reading(self, random: Random, step: int, name: str, crop: bool = False) -> Part:
        progress = min(1.0, (step - self.warm_up) / max(1, self.horizon))
        early, late = {"small": 8, "middle": 2, "large": 1}, {"small": 2, "middle": 3, "large": 6}
        shares = {kind: early[kind] + progress * (late[kind] - early[kind]) for kind in early}
        kind = "crop" if crop else random.choices(tuple(shares), tuple(shares.values()))[0]
        height, width = random.choice(SIZES[kind])
        layout = LAYOUTS[kind]
        if name == "lines" and kind in ("middle", "large") and random.random() < SPARSELY:
            layout = SPARSE
        draw = form if name == "form" and not crop else lines
        drawer = partial(draw, random, self.lexicon, 32 * height, 32 * width, layout)
        labelled = crop or random.random() < LABELLED
        return self.drawn(f"{name}-{kind}", drawer, height, width, labelled=labelled)

    def scene(self, random: Random, asked: bool) -> Part:
        height, width = random.choice(SCENE_SIZES)
        kind = random.random()

        def draw() -> tuple[Drawing, list[Turn]]:
            drawer = self.scenes.shapes if kind < 0.75 else self.scenes.pictures
            drawing, things = drawer(random, 32 * height, 32 * width)
            more = [ask_many(random, things) for _ in range(COUNTED)]
            turns = list(dict.fromkeys([*questions(random, things, 5), *more]))
            random.shuffle(turns)
            for question, _, _ in turns:
                thing = about(question, things)
                if thing:
                    drawing.written[question] = [drawing.things[things.index(thing)][0]]
            if random.random() < 0.03:
                turns[-1:] = [("Read the text.", "There is no text.", False)]
            return drawing, turns

        return self.drawn("shapes" if kind < 0.75 else "pictures", draw, height, width, asked)

    def other(self, random: Random) -> Part:
        """Flags, clocks and bars, small; and, in all sizes, what nothing can be told of."""
        height, width = random.choice(((4, 4), (6, 6), (5, 5), (8, 8)))
        kinds = {
            "flag": partial(flag, random, self.gallery),
            "clock": partial(clock, random, self.lexicon),
            "bars": partial(bars, random, self.lexicon),
            "photograph": partial(photograph, random),
        }
        name = random.choice(tuple(kinds))
        if name == "photograph":
            height, width = random.choice(SIZES[random.choice(("small", "middle", "large"))])
        return self.drawn(name, partial(kinds[name], 32 * height, 32 * width), height, width)

    def conversation(self, random: Random) -> Part:
        turns = [[random.choice(self.talk)] for _ in range(24)]
        ids, answers = self.spoken(turns, picture=False)
        return Part("chat", 0, 0, None, None, None, None, ids, answers)

    def drawn(
        self, name: str, draw: Drawer, height: int, width: int, asked: bool = True,
        labelled: bool = True,
    ) -> Part:  # fmt: skip
        shown: list[Shown] = []
        turns: list[list[Turn]] = []
        for _ in range(max(1, (1 if labelled else 2) * PATCHES // (4 * height * width))):
            drawing, spoken = draw()
            shown.append(drawing.shown(32 * height, 32 * width))
            turns.append(spoken)
        return self.part(name, shown, turns if asked else None, labelled)

    def part(
        self, name: str, shown: list[Shown], turns: list[list[Turn]] | None, labelled: bool = True
    ) -> Part:
        height, width, _ = shown[0].pixels.shape
        ids, answers, looks = None, None, None
        if turns:
            ids, answers = self.spoken(turns, picture=True)
            looks = torch.full_like(ids, -1)
            for i, (each, one) in enumerate(zip(turns, shown, strict=True)):
                row = self.scribe.looks(each, one.places)
                looks[i, : len(row)] = torch.tensor(row)
        return Part(
            name, height // PATCH, width // PATCH,
            torch.from_numpy(np.stack([s.patches() for s in shown])),
            torch.from_numpy(np.stack([s.cells for s in shown])).long(),
            torch.from_numpy(np.stack([s.kinds for s in shown])).long(),
            torch.from_numpy(np.stack([s.colours for s in shown])).long(),
            ids, answers, looks, labelled,
        )  # fmt: skip

    def spoken(self, turns: list[list[Turn]], picture: bool) -> tuple[Tensor, Tensor]:
        return padded([self.scribe.turns(each, picture) for each in turns])


def padded(spoken: list[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """Padding stands last, where a causal model is not reached by it."""
    width = max(len(ids) for ids, _ in spoken)
    ids = torch.full((len(spoken), width), PAD)
    answers = torch.zeros((len(spoken), width), dtype=torch.bool)
    for i, (row, marks) in enumerate(spoken):
        ids[i, : len(row)] = torch.tensor(row)
        answers[i, : len(marks)] = torch.tensor(marks)
    return ids, answers
