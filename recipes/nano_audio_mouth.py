"""Trains nano-audio to speak: backbone and depth transformer, before it hears anything.

What the customer says stands in the prompt as words; later the ears take their place. Half of the
replies are words in no order, so that sound follows the words and not the sentence.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nano_audio_clips import vocabulary
from nano_audio_dialogue import INTERLEAVED, SPEAK, SPOKEN, TEXT, Dialogue, Positions
from nano_audio_language import TALK, Turn, draw_digits, draw_order, draw_reply, draw_talk, salad
from nano_audio_tokenizer import make_tokenizer
from nano_audio_units import BOOKS, CODES, PAUSES, Units
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import AudioConfig, DepthConfig
from audio.depth import DepthTransformer, FrameEmbedding
from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.train import Plan, Training

BATCH, JUDGED = (
    12,
    0.35,
)  # sequences a step; part of the frames that the depth transformer learns on
SLOTS = 0.3  # weight of "nothing is said now" against that of a word
NOISE, LOST = 0.03, 0.01  # codes and whole frames that are heard wrong, so that mistakes heal
PLAN = Plan(rate=2e-3, table_rate=2e-3, average=0.998)


def settings(vocabulary_size: int) -> AudioConfig:
    backbone = BackboneConfig(
        vocab_size=vocabulary_size, hidden_size=192, heads=6, kv_heads=2, feed_forward=512,
        head_dim=32, layer_types=("conv", "full_attention") * 3, norm_eps=1e-5, rope_theta=1e6,
    )  # fmt: skip
    depth = DepthConfig(layers=2, width=128, feed_forward=384, heads=4, kv_heads=2)
    return AudioConfig(
        backbone, depth=depth, codebooks=BOOKS, codebook_size=CODES, n_text=1, n_audio=2,
        text_pad="<|text_pad|>",
    )  # fmt: skip


class Mouth(nn.Module):
    """The parts of a speech model that need no ears."""

    def __init__(self, config: AudioConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = Backbone.new(config.backbone, seed=seed)
        self.frames, self.depth = FrameEmbedding(config), DepthTransformer(config)
        with torch.no_grad():
            for part in (self.frames, self.depth):
                for name, parameter in part.named_parameters():
                    if name.endswith("bias"):
                        parameter.zero_()
                    elif parameter.dim() > 1:
                        parameter.normal_(0.0, 0.5 * parameter.shape[-1] ** -0.5)


class Packed:
    """Turns of one step, padded on the right."""

    def __init__(self, turns: Sequence[Positions], draw: np.random.Generator) -> None:
        longest = max(len(t.kinds) for t in turns)
        shape = (len(turns), longest)
        self.kinds = torch.zeros(shape, dtype=torch.long)
        self.tokens = torch.zeros(shape, dtype=torch.long)
        self.judged = torch.zeros(shape)
        self.codes = torch.zeros((*shape, BOOKS), dtype=torch.long)
        for row, turn in enumerate(turns):
            n = len(turn.kinds)
            self.kinds[row, :n] = torch.tensor(turn.kinds)
            self.tokens[row, :n] = torch.tensor(turn.tokens)
            self.judged[row, :n] = torch.tensor(turn.judged)
            spoken = self.kinds[row] == SPOKEN
            if turn.frames:
                self.codes[row, spoken] = torch.from_numpy(np.stack(turn.frames))
        self.heard = torch.from_numpy(noisy(self.codes.numpy(), draw))
        self.mask = self.kinds > 0

    def embeds(self, mouth: Mouth) -> Tensor:
        text = F.embedding(self.tokens, mouth.backbone.embedding)
        return torch.where((self.kinds == SPOKEN)[..., None], mouth.frames(self.heard), text)


def noisy(codes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Frames as a model that errs would hear its own: some codes wrong, some frames lost."""
    wrong = draw.random(codes.shape) < NOISE
    wrong |= (draw.random(codes.shape[:-1]) < LOST)[..., None]
    return np.where(wrong & (codes < CODES), draw.integers(0, CODES, codes.shape), codes)


def losses(mouth: Mouth, batch: Packed, draw: np.random.Generator) -> dict[str, Tensor]:
    """What comes next, at every judged position: words, and some of the frames."""
    hidden = mouth.backbone(batch.embeds(mouth), batch.mask)[:, :-1]
    judged, kinds = batch.judged[:, 1:], batch.kinds[:, 1:]
    words = (kinds == TEXT) & (judged > 0)
    text = F.cross_entropy(
        mouth.backbone.logits(hidden[words]), batch.tokens[:, 1:][words], reduction="none"
    )
    weights = judged[words]
    spoken = (kinds == SPOKEN) & (judged > 0)
    spoken &= torch.from_numpy(draw.random(tuple(spoken.shape)) < JUDGED)
    codes = batch.codes[:, 1:][spoken]
    scores = mouth.depth(hidden[spoken], codes).transpose(1, 2)
    by_book = F.cross_entropy(scores, codes, reduction="none").mean(0)
    return {
        "text": (text * weights).sum() / weights.sum(),
        "book0": by_book[0],
        "books": by_book[1:].mean(),
    }


class Lines:
    """What is said in a step; hangs on seed and step alone."""

    def __init__(self, dialogue: Dialogue, seed: int, whole: float) -> None:
        self.dialogue, self.seed, self.whole = dialogue, seed, whole
        self.words = [w for w in dialogue.units.codes if w not in PAUSES]

    def batch(self, step: int) -> tuple[Packed, np.random.Generator]:
        draw, noise = random.Random(f"{self.seed}/{step}"), np.random.default_rng([self.seed, step])
        return Packed([self.line(draw) for _ in range(BATCH)], noise), noise

    def line(self, draw: random.Random) -> Positions:
        kind = draw.random()
        if kind < self.whole:
            text = salad(draw, self.words) if draw.random() < 0.6 else draw_reply(draw)
            made = self.dialogue.opening(SPEAK)
            made.text(self.dialogue.ids(text))
            self.dialogue.answer(made)
            self.dialogue.spoken_whole(made, text)
            return made
        made = self.dialogue.opening(INTERLEAVED)
        if kind < self.whole + (1 - self.whole) / 2:
            turn = draw_counter(draw)
            made.text(self.dialogue.ids(turn.request))
            self.dialogue.answer(made)
            self.dialogue.interleaved(made, turn.reply, free=1.0, slots=SLOTS)
        else:
            self.dialogue.answer(made)
            said = salad(draw, self.words)
            self.dialogue.interleaved(made, said, free=0.0, slots=SLOTS)
        return made


def draw_counter(draw: random.Random) -> Turn:
    kind = draw.random()
    return draw_order(draw) if kind < 0.6 else draw_digits(draw) if kind < 0.8 else draw_talk(draw)


@torch.no_grad()
def check(mouth: Mouth, dialogue: Dialogue, count: int, seed: int) -> str:
    """Greedy frames after true words: of all sentences, how many have every code right?"""
    draw = random.Random(f"check {seed}")
    exact = frames = right = words = heard = 0
    for _ in range(count):
        turn = draw_counter(draw)
        made = dialogue.opening(INTERLEAVED)
        made.text(dialogue.ids(turn.request))
        dialogue.answer(made)
        begin = len(made.kinds)
        dialogue.interleaved(made, turn.reply, free=1.0, slots=SLOTS)
        found, said = follow(mouth, made, begin)
        wanted = np.stack(made.frames)
        same = (found == wanted).all(1)
        exact, frames, right = exact + bool(same.all()), frames + len(same), right + int(same.sum())
        words, heard = words + len(said), heard + sum(said)
    return f"sentences {exact}/{count}, frames {right}/{frames}, text tokens {heard}/{words}"


def follow(mouth: Mouth, made: Positions, begin: int) -> tuple[np.ndarray, list[bool]]:
    """The model's own frames, fed back to it, with the words given; was each token its choice?"""
    batch = Packed([made], np.random.default_rng(0))
    batch.heard = batch.codes
    state, frames, said = mouth.backbone.start(), [], []
    embeds = batch.embeds(mouth)
    hidden, state = mouth.backbone.step(embeds[:, :begin], state)
    for place in range(begin, len(made.kinds)):
        last = hidden[0, -1]
        if made.kinds[place] == SPOKEN:
            frames.append(mouth.depth.frame(last, lambda logits: int(logits.argmax())))
            x = mouth.frames(torch.tensor(frames[-1]))[None, None]
        else:
            said.append(int(mouth.backbone.logits(last).argmax()) == made.tokens[place])
            x = embeds[:, place : place + 1]
        hidden, state = mouth.backbone.step(x, state)
    return np.array(frames), said


def train(dialogue: Dialogue, config: AudioConfig, folder: Path, args: argparse.Namespace) -> Mouth:
    mouth = Mouth(config, args.seed)
    tables = [mouth.backbone.embedding, mouth.frames.weight]
    training = Training(mouth, PLAN, tables)
    state = folder / "mouth.safetensors"
    if state.exists():
        training.load(state)
    first, start = training.step, time.process_time()
    while training.step < args.steps:
        # Interleaved first, whole second: that order learns in a fifth of the time.
        whole = 0.0 if training.step < 0.4 * args.steps else 0.5
        batch, draw = Lines(dialogue, args.seed, whole).batch(training.step)
        parts = losses(mouth, batch, draw)
        total = parts["text"] + parts["book0"] + 1.5 * parts["books"]
        training.update(total, training.step / args.steps)
        if training.step % 50 == 0:
            told = " ".join(f"{k} {v.item():.3f}" for k, v in parts.items())
            rate = (time.process_time() - start) / (training.step - first)
            print(f"{training.step} {told} {rate:.2f} s/step", flush=True)
        if training.step % 500 == 0:
            training.save(state)
            print(check(mouth, dialogue, 20, args.seed), flush=True)
    training.save(state)
    training.use_averages()
    return mouth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    units = Units.load(args.run / "units.npz")
    heard = [w for ways, _ in TALK.values() for way in ways for w in way.split()]
    tokenizer = make_tokenizer([*heard, *(w for w in vocabulary() if w[0] != "<")])
    dialogue = Dialogue(tokenizer, units)
    config = settings(tokenizer.get_vocab_size())
    mouth = train(dialogue, config, args.run, args)
    print(check(mouth, dialogue, 100, args.seed + 1))


if __name__ == "__main__":
    main()
