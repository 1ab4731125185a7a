"""Trains nano-audio to answer and to speak: backbone and depth transformer, before it has ears.

What the customer says stands in the prompt as ears might report it: moments of each word's own
embedding and of nothing. Many of the replies are words in no order, so that sound
follows the words and not the sentence.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nano_audio_clips import vocabulary
from nano_audio_dialogue import (
    HEAR,
    HEARD,
    INTERLEAVED,
    SILENT,
    SPEAK,
    SPOKEN,
    TEXT,
    Dialogue,
    Positions,
)
from nano_audio_language import (
    SORRY,
    Turn,
    draw_digits,
    draw_order,
    draw_reply,
    draw_talk,
    salad,
)
from nano_audio_model import settings
from nano_audio_speakers import other_sentences
from nano_audio_tokenizer import BLANK, PROMPTS, UNKNOWN, make_tokenizer
from nano_audio_units import BOOKS, CODES, PAUSES, Units
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import AudioConfig
from audio.depth import DepthTransformer, FrameEmbedding
from lfm2_mm.backbone import Backbone
from lfm2_mm.train import Plan, Training

BATCH = 16  # sequences a step
SORTED = 4  # steps whose lines are drawn together and dealt out by length
JUDGED = 0.35  # part of the frames that the depth transformer learns on
WEIGHTS = {"text": 1.0, "given": 1.0, "book0": 1.0, "books": 1.5}
SLOTS = 0.3  # weight of "nothing is said now" against that of a word
SOME = -0.3  # of "a word is said now" where words are given: which, nobody can know
NOISE, LOST = 0.03, 0.01  # codes and whole frames that are heard wrong, so that mistakes heal
BLUR = 0.15  # noise over what is imagined to be heard, in deviations of an embedding
AGAIN = 0.25  # part of the replies that a second exchange follows
PLAN = Plan(rate=2e-3, table_rate=2e-3, average=0.998)


@dataclass(frozen=True)
class Mix:
    """Shares of the lines: frames all at once, and of the rest words that are given, transcripts,
    replies without sound; what remains are replies with words and frames in turn."""

    whole: float = 0.0
    salad: float = 0.42
    written: float = 0.13
    silent: float = 0.0


# First to speak, interleaved, then all at once: that order learns in a fifth of the time. Then to
# answer, which takes many more examples, mostly without sound, since those are short.
PHASES = (
    (500, Mix()),
    (900, Mix(whole=0.35)),
    (10**9, Mix(whole=0.07, salad=0.08, written=0.22, silent=0.5)),
)
REHEARSAL = Mix(salad=1.0, written=0.0)


def mix_of(step: int) -> Mix:
    return next(mix for end, mix in PHASES if step < end)


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

    def __init__(self, turns: Sequence[Positions], draw: np.random.Generator, pad: int) -> None:
        """`pad`: the token of a text slot without a word."""
        self.pad = pad
        longest = max(len(t.kinds) for t in turns)
        shape = (len(turns), longest)
        self.kinds = torch.zeros(shape, dtype=torch.long)
        self.tokens = torch.zeros(shape, dtype=torch.long)
        self.judged = torch.zeros(shape)
        self.codes = torch.zeros((*shape, BOOKS), dtype=torch.long)
        self.imagined = torch.tensor([i for t in turns for i in t.imagined])  # (n, 3)
        for row, turn in enumerate(turns):
            n = len(turn.kinds)
            self.kinds[row, :n] = torch.tensor(turn.kinds)
            self.tokens[row, :n] = torch.tensor(turn.tokens)
            self.judged[row, :n] = torch.tensor(turn.judged)
            spoken = self.kinds[row] == SPOKEN
            if turn.frames:
                self.codes[row, spoken] = torch.from_numpy(np.stack(turn.frames))
        self.listened = torch.from_numpy(noisy(self.codes.numpy(), draw))
        self.mask = self.kinds > 0

    def embeds(self, mouth: Mouth, heard: Tensor | None = None) -> Tensor:
        """(b, t, hidden). `heard` (n, hidden): the HEARD positions in order, else imagined."""
        table = mouth.backbone.embedding
        spoken = (self.kinds == SPOKEN)[..., None]
        made = torch.where(spoken, mouth.frames(self.listened), F.embedding(self.tokens, table))
        heard = self.imagine(table) if heard is None else heard
        if not len(heard):
            return made
        return made.masked_scatter((self.kinds == HEARD)[..., None], heard.to(made.dtype))

    def imagine(self, table: Tensor) -> Tensor:
        if not len(self.imagined):
            return table[:0]
        first, second = (F.embedding(self.imagined[:, n].long(), table) for n in (0, 1))
        sure = self.imagined[:, 2:]
        clean = sure * first + (1 - sure) * second
        return clean + BLUR * table.detach().std() * torch.randn_like(clean)


def noisy(codes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Frames as a model that errs would hear its own: some codes wrong, some frames lost."""
    wrong = draw.random(codes.shape) < NOISE
    wrong |= (draw.random(codes.shape[:-1]) < LOST)[..., None]
    return np.where(wrong & (codes < CODES), draw.integers(0, CODES, codes.shape), codes)


def losses(
    mouth: Mouth,
    batch: Packed,
    draw: np.random.Generator,
    heard: Tensor | None = None,
    share: float = JUDGED,
) -> dict[str, Tensor]:
    """What comes next, at every judged position: words, and a share of the frames."""
    hidden = mouth.backbone(batch.embeds(mouth, heard), batch.mask)[:, :-1]
    judged, kinds = batch.judged[:, 1:], batch.kinds[:, 1:]
    words = (kinds == TEXT) & (judged > 0)
    text = F.cross_entropy(
        mouth.backbone.logits(hidden[words]), batch.tokens[:, 1:][words], reduction="none"
    )
    weights = judged[words]
    given = (kinds == TEXT) & (judged < 0)
    spoken = (kinds == SPOKEN) & (judged > 0)
    spoken &= torch.from_numpy(draw.random(tuple(spoken.shape)) < share)
    made = {"text": (text * weights).sum() / weights.sum()}
    if given.any():
        scores = mouth.backbone.logits(hidden[given]).float().log_softmax(-1)
        some = torch.cat([scores[:, : batch.pad], scores[:, batch.pad + 1 :]], 1).logsumexp(-1)
        made["given"] = (some * judged[given]).mean()
    if not spoken.any():
        return made
    codes = batch.codes[:, 1:][spoken]
    scores = mouth.depth(hidden[spoken], codes).transpose(1, 2)
    by_book = F.cross_entropy(scores, codes, reduction="none").mean(0)
    return made | {"book0": by_book[0], "books": by_book[1:].mean()}


class Lines:
    """What is said in a step; hangs on seed and step alone. `part`: of each step's lines, which
    (from 0) of how many."""

    def __init__(
        self, dialogue: Dialogue, others: Sequence[str], seed: int, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.dialogue, self.others, self.seed, self.part = dialogue, others, seed, part
        self.words = [w for w in dialogue.units.codes if w not in PAUSES]
        self.heard = [w for w in vocabulary() if w[0] != "<"]
        self.known = set(self.heard)

    def batch(self, step: int, mix: Mix) -> tuple[Packed, np.random.Generator]:
        """Of four steps' lines those of one step's length."""
        draw = random.Random(f"{self.seed}/{step // SORTED}")
        drawn = [self.line(draw, mix) for _ in range(SORTED * BATCH)]
        drawn.sort(key=lambda line: len(line.kinds))
        place = step % SORTED * BATCH
        torch.manual_seed(step)
        rank, count = self.part
        noise = np.random.default_rng([self.seed, step])
        return Packed(drawn[place : place + BATCH][rank::count], noise, self.dialogue.pad), noise

    def line(self, draw: random.Random, mix: Mix) -> Positions:
        if draw.random() < mix.whole:
            return self.read_aloud(draw)
        kind = draw.random()
        if kind < mix.salad:
            made = self.dialogue.opening(INTERLEAVED)
            self.dialogue.answer(made)
            said = salad(draw, self.words) if draw.random() < 0.6 else draw_reply(draw)
            self.dialogue.interleaved(made, said, free=SOME, slots=SLOTS)
            return made
        if kind < mix.salad + mix.written:
            made = self.dialogue.opening(HEAR)
            turn = self.turn(draw)
            if draw.random() < 0.5:  # in no order, so that nothing but hearing helps
                turn = replace(
                    turn, request=" ".join(draw.choices(self.heard, k=draw.randint(1, 9)))
                )
            words = self.ask(made, turn, draw)
            self.dialogue.answer(made)
            self.dialogue.written(made, words)
            return made
        if kind < mix.salad + mix.written + mix.silent:
            turn, made = self.turn(draw), self.dialogue.opening(SILENT)
            self.ask(made, turn, draw)
            self.dialogue.answer(made)
            self.dialogue.silent(made, turn.reply)
            return made
        made = self.dialogue.opening(INTERLEAVED)
        self.exchange(made, draw)
        if draw.random() < AGAIN:
            self.dialogue.next_turn(made)
            self.exchange(made, draw)
        return made

    def read_aloud(self, draw: random.Random) -> Positions:
        text = salad(draw, self.words) if draw.random() < 0.6 else draw_reply(draw)
        voice = draw.choice(("", *PROMPTS[3:]))  # there is one voice, whatever is asked for
        made = self.dialogue.opening(f"{SPEAK} {voice}".strip())
        made.text(self.dialogue.ids(text))
        self.dialogue.answer(made)
        self.dialogue.spoken_whole(made, text)
        return made

    def exchange(self, made: Positions, draw: random.Random) -> None:
        turn = self.turn(draw)
        if draw.random() < 0.1:
            made.text(self.dialogue.ids(turn.request))
        else:
            self.ask(made, turn, draw)
        self.dialogue.answer(made)
        self.dialogue.interleaved(made, turn.reply, free=1.0, slots=SLOTS)

    def ask(self, made: Positions, turn: Turn, draw: random.Random) -> list[int]:
        """The request as heard: words that ears do not tell apart are one. Returns the tokens."""
        spoken = [w if w in self.known else UNKNOWN.strip(BLANK) for w in turn.request.split()]
        words = [self.dialogue.ids(w)[0] for w in spoken]
        made.imagine(self.dialogue.imagine(words, draw))
        return words

    def turn(self, draw: random.Random) -> Turn:
        return draw_counter(draw, self.others)


def draw_counter(draw: random.Random, others: Sequence[str]) -> Turn:
    """What a customer says: orders most of all, sometimes what nobody can answer here, or noise."""
    kind = draw.random()
    if kind < 0.5:
        return draw_order(draw)
    if kind < 0.7:
        return draw_digits(draw)
    if kind < 0.82:
        return draw_talk(draw)
    said = draw.choice(others).split() if kind < 0.96 else []
    begin = draw.randrange(len(said)) if said and draw.random() < 0.3 else 0
    return Turn(" ".join(said[begin:]), "other", SORRY)


@torch.no_grad()
def check(mouth: Mouth, lines: Lines, count: int, seed: int) -> str:
    """Greedy frames after true words: of all sentences, how many have every code right?"""
    draw, dialogue = random.Random(f"check {seed}"), lines.dialogue
    exact = frames = right = words = heard = 0
    for _ in range(count):
        turn = lines.turn(draw)
        made = dialogue.opening(INTERLEAVED)
        lines.ask(made, turn, draw)
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
    batch = Packed([made], np.random.default_rng(0), 0)
    batch.listened = batch.codes
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


def train(
    lines: Lines, config: AudioConfig, folder: Path, steps: int, seed: int, stop: int | None = None
) -> Mouth:
    """Train, or go on, to `steps`, or until `stop` of them; the state is kept every 250."""
    mouth = Mouth(config, seed)
    training = Training(mouth, PLAN, [mouth.backbone.embedding, mouth.frames.weight])
    state = folder / "mouth.safetensors"
    if state.exists():
        training.load(state)
    first, start = training.step, time.process_time()
    while training.step < (stop or steps):
        batch, draw = lines.batch(training.step, mix_of(training.step))
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(mouth, batch, draw)
        total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        training.update(total, training.step / steps)
        if training.step % 50 == 0:
            told = " ".join(f"{k} {v.item():.3f}" for k, v in parts.items())
            rate = (time.process_time() - start) / (training.step - first)
            print(f"{training.step} {told} {rate:.2f} s/step", flush=True)
        if training.step % 250 == 0:
            training.save(state)
        if training.step % 500 == 0:
            print(check(mouth, lines, 12, seed), flush=True)
    training.save(state)
    training.use_averages()
    return mouth


def lines_of(data: Path, run: Path, seed: int, part: tuple[int, int] = (0, 1)) -> Lines:
    """Needs the units that were made before."""
    heard = [w for w in vocabulary() if w[0] != "<"]
    dialogue = Dialogue(make_tokenizer(heard), Units.load(run / "units.npz"))
    return Lines(dialogue, other_sentences(data)[0], seed, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = lines_of(args.data, args.run, args.seed)
    config = settings(lines.dialogue.tokenizer_size)
    mouth = train(lines, config, args.run, args.steps, args.seed)
    print(check(mouth, lines, 100, args.seed + 1))


if __name__ == "__main__":
    main()
