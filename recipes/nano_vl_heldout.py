"""Held-out pictures with questions, and the answers a model gives to them, greedily.

Words and fonts are those never drawn in training; every scene shows a pair of shape and colour (or
a small picture) never met there. Knows drawing and the model; prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from nano_vl_draw import Drawing, Shown, blank, ink_and_paper
from nano_vl_scenes import CANNOT_TELL, UNTOLD, Scenes, ask
from nano_vl_texts import Layout, Turn, form
from nano_vl_tokens import END, Scribe
from nano_vl_words import Lexicon
from PIL import Image
from torch import Tensor

from lfm2_mm.backbone import Backbone
from vision.tower import VisionModel

LONGEST = 60  # tokens of an answer
GREY = 127


@dataclass(frozen=True)
class Item:
    """One picture as it is shown, a question, the right answer."""

    shown: Shown
    question: str
    answer: str

    def grey(self) -> Item:
        """The same question about nothing: what can be guessed."""
        blind = Shown(np.full_like(self.shown.pixels, GREY), self.shown.cells, self.shown.kinds,
                      self.shown.colours)  # fmt: skip
        return Item(blind, self.question, self.answer)


SCENE_QUESTIONS = {
    "what": "what", "how many": "many", "which colour": "colour", "where": "where",
    "yes or no": "is_there", "left or above": "relation",
}  # fmt: skip


def scene_items(scenes: Scenes, kind: str, count: int, seed: int) -> list[Item]:
    """Questions of one kind about scenes of 128 to 256 pixels; yes and no equally often."""
    random, items = Random(f"held out/{seed}/{kind}"), list[Item]()
    quota = dict.fromkeys(("yes", "no"), (count + 1) // 2)
    while len(items) < count:
        side = random.choice((4, 4, 6, 8))
        drawing, things = scenes.shapes(random, 32 * side, 32 * side)
        turn = ask(random, things, SCENE_QUESTIONS[kind])
        if turn is None or turn[1].startswith("There is no") or quota.get(turn[1]) == 0:
            continue
        if turn[1] in quota:
            quota[turn[1]] -= 1
        items.append(Item(drawing.shown(32 * side, 32 * side), turn[0], turn[1]))
    return items


def page(
    random: Random, lexicon: Lexicon, size: int, side: int = 512, words: int = 3
) -> tuple[Drawing, list[str]]:
    """A page of `side` pixels with a few lines of one word each, in a font of `size` pixels."""
    ink, paper = ink_and_paper(random)
    drawing = blank(random, side, side, paper)
    face = lexicon.face(random, size)
    step = (face.ascent + face.descent) * random.uniform(1.1, 1.8)
    texts: list[str] = []
    while len(texts) < words:
        text = lexicon.word(random)
        if face.width(text) <= side - 20:
            texts.append(text)
    y = random.uniform(4, side - step * words - 4)
    x = random.uniform(4, max(5.0, side - max(face.width(t) for t in texts) - 6))
    for text in texts:
        drawing.write(x, y, text, face, ink)
        y += step
    return drawing, texts


def page_items(
    lexicon: Lexicon, size: int, tokens: int, count: int, seed: int, words: int = 3
) -> list[Item]:
    """Pages of 512 x 512 pixels shown with a square number of tokens: read all of it."""
    random = Random(f"held out/{seed}/page/{size}")  # the same pages at every budget
    side = 32 * round(tokens**0.5)
    items = []
    for _ in range(count):
        drawing, texts = page(random, lexicon, size, words=words)
        items.append(Item(drawing.shown(side, side), "Read the text.", "\n".join(texts)))
    return items


def field_items(lexicon: Lexicon, count: int, seed: int) -> list[Item]:
    """Forms of 512 x 512 pixels in fonts of 20 to 36, shown with 256 tokens; one value is asked."""
    random, items = Random(f"held out/{seed}/form"), list[Item]()
    for _ in range(count):
        drawing, turns = form(random, lexicon, 512, 512, Layout(least=20, most=36), scales=(1,))
        items.append(Item(drawing.shown(512, 512), turns[0][0], turns[0][1]))
    return items


def picture_items(scenes: Scenes, count: int, seed: int) -> list[Item]:
    """What a small picture shows: known ones, in places, sizes and company not met before."""
    random, items = Random(f"held out/{seed}/pictures"), list[Item]()
    while len(items) < count:
        side = random.choice((4, 6, 8))
        drawing, things = scenes.pictures(random, 32 * side, 32 * side)
        turn = ask(random, things, "what")
        if turn:
            items.append(Item(drawing.shown(32 * side, 32 * side), turn[0], turn[1]))
    return items


def photograph_items(data: Path) -> list[Item]:
    """Questions about the photographs of the data folder: no answer but a modest one is right."""
    items = []
    for name in ("astronaut", "chelsea_cat", "coffee_cup"):
        with Image.open(data / f"vision/fixtures/{name}.jpg") as image:
            photograph = image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
        shown = Drawing(photograph).shown(256, 256)
        items += [Item(shown, question, CANNOT_TELL) for question in UNTOLD]
    return items


def words_right(answer: str, wanted: str) -> list[bool]:
    """For each wanted word, whether the answer has it at its place."""
    given = answer.split()
    return [i < len(given) and given[i] == word for i, word in enumerate(wanted.split())]


def letters_right(answer: str, wanted: str) -> float:
    """1 - character error rate, at least 0: Levenshtein's distance over the wanted length."""
    row = list(range(len(wanted) + 1))
    for i, given in enumerate(answer, 1):
        above, row[0] = row[0], i
        for j, letter in enumerate(wanted, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (given != letter))
    return max(0.0, 1 - row[-1] / len(wanted))


class Reader:
    """A vision model and a backbone that answer, many pictures at once."""

    def __init__(self, vision: VisionModel, backbone: Backbone, scribe: Scribe) -> None:
        self.vision, self.backbone, self.scribe = vision, backbone, scribe

    @torch.inference_mode()
    def answers(self, items: Sequence[Item], part: int = 32, length: int = LONGEST) -> list[str]:
        """Greedy answers. Pictures of one shape with questions of one length go together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(items):
            shape = item.shown.pixels.shape[:2]
            groups.setdefault((*shape, len(self.prompt(item))), []).append(i)
        found = [""] * len(items)
        for group in groups.values():
            for start in range(0, len(group), part):
                some = group[start : start + part]
                for i, text in zip(
                    some, self._answer([items[i] for i in some], length), strict=True
                ):
                    found[i] = text
        return found

    def prompt(self, item: Item) -> list[int]:
        turn: Turn = (item.question, "", False)
        ids, _ = self.scribe.turns([turn], picture=True)
        return ids[: -len(self.scribe.newline) - 1]

    def _answer(self, items: list[Item], length: int) -> list[str]:
        height, width, _ = items[0].shown.pixels.shape
        patches = torch.from_numpy(np.stack([item.shown.patches() for item in items]))
        seen = self.vision(patches.to(self.vision.tower.positions.dtype), height // 16, width // 16)
        opening = torch.tensor([self.scribe.opening]).expand(len(items), -1)
        ids = torch.tensor([self.prompt(item) for item in items])
        embed = self.backbone.embed
        hidden, state = self.backbone.step(
            torch.cat([embed(opening), seen.to(self.backbone.dtype), embed(ids)], 1)
        )
        said: list[Tensor] = []
        ended = torch.zeros(len(items), dtype=torch.bool)
        for _ in range(length):
            token = self.backbone.logits(hidden[:, -1]).argmax(-1)
            said.append(token.masked_fill(ended, END))
            ended |= token == END
            if ended.all():
                break
            hidden, state = self.backbone.step(embed(token[:, None]), state)
        rows = torch.stack(said, 1).tolist()
        return [self.text(row) for row in rows]

    def text(self, ids: list[int]) -> str:
        return self.scribe.tokenizer.decode(ids[: ids.index(END)] if END in ids else ids)
