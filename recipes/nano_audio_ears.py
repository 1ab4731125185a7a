"""Trains nano-audio's ears: log-mel -> FastConformer, with words as its teachers.

Two heads that are not shipped teach it: CTC over words and, where the times of words are known, the
word in each 80 ms. Real orders have labels instead of words: of all wordings with those labels the
likeliest is taken, with each opening's mean score over all clips subtracted, since bare CTC scores
favour the shortest. Redone every fifth of the run. `--begin FOLDER` goes on from the ears of a
finished checkpoint; `--commands DIR` lets many more speakers say digits (Speech Commands).
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nano_audio_augment import augment, band_limited, clicks, stretched
from nano_audio_clips import (
    RATE,
    UNKNOWN,
    Clip,
    Synthetic,
    barista,
    commands,
    digits,
    names,
    phrase,
    rooms,
    strange,
    strung,
    vocabulary,
    wordings,
)
from nano_audio_model import settings
from together import ALONE, Together, joined
from torch import Tensor, nn
from torch.nn import functional as F

from audio.encoder import AudioEncoder
from audio.loading import load_speech
from audio.mel import LogMel
from lfm2_mm.device import choose
from lfm2_mm.train import Plan, Training

CONFIG = settings(1)  # what words the backbone knows is nothing to the ears
ENCODER = CONFIG.encoder
STEP = ENCODER.factor * CONFIG.mel.hop / CONFIG.mel.sample_rate  # s a position
PLAN = Plan(rate=2e-3, warm_up=0.03, average=0.998)
AGAIN = replace(PLAN, rate=1e-3)  # of ears that have heard before
HEADS = 150  # steps that teachers are fitted to such ears
SHARES = (9, 6, 7, 2)  # clips of a batch: synthetic, real orders, digits strung, the rest
REST = ("sentence", "sentence", "name", "phrase", "clicks", "reading", "noise")  # kinds of it
SORTED = 4  # steps whose clips are drawn together and dealt out by length
FORCE = 0.2  # part of the run after which the wordings of real orders are chosen anew
FIRST = 0.05
DROPPED = 0.1  # of what the teachers see


class Ears(nn.Module):
    """The conformer and its teachers."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.conformer = AudioEncoder(CONFIG).conformer
        for layer in self.conformer.pre_encode.conv:  # torch's own start lets sound fade out
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.by_ctc = nn.Linear(ENCODER.width, len(words) + 1)  # the last is CTC's blank
        self.by_frame = nn.Linear(ENCODER.width, len(words) + 1)  # the last is silence
        self.words = {word: row for row, word in enumerate(words)}
        self.blank = len(words)

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mels (b, t, 80), frames of each -> CTC and frame log-probabilities, their lengths."""
        hidden, counts = self.conformer(mels, lengths)
        hidden = F.dropout(hidden.float(), DROPPED, self.training)
        return self.by_ctc(hidden).log_softmax(-1), self.by_frame(hidden).log_softmax(-1), counts

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.words.get(word, self.words[UNKNOWN]) for word in words]


class Sounds:
    """All clips, and the batches drawn from them: a step's batch hangs on seed and step alone."""

    def __init__(
        self, data: Path, run: Path, seed: int, shares: Sequence[int] = SHARES,
        single: Path | None = None, part: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """`single`: folder of Speech Commands, where it is there. `part`: of each step's clips,
        which (from 0) of how many."""
        self.shares, self.part = shares, part
        self.voices = [Synthetic(run / name) for name in ("spoken", "spoken-clearly")]
        self.sentences = Synthetic(run / "spoken-others")
        self.seed = seed
        self.orders, self.held = barista(data)
        self.digits, self.held_digits = digits(data)
        self.commands, self.held_commands, self.others = (
            commands(single) if single else ([], [], [])
        )
        self.names = names(data)
        self.reading, self.noises = strange(data)
        self.rooms = rooms(data)
        self.mel = LogMel(CONFIG.mel)
        self.forced: list[tuple[str, ...] | None] = [None] * len(self.orders)

    def batch(self, step: int) -> Batch:
        """Of four steps' clips those of one step's length: little is padded."""
        rank, count = self.part
        draw = random.Random(f"{self.seed}/{step // SORTED}")
        kinds = (self.request, self.order, self.digit, self.rest)
        drawn = [
            kind(draw)
            for kind, count in zip(kinds, self.shares, strict=True)
            for _ in range(SORTED * count)
        ]
        size, turn = sum(self.shares), step % SORTED
        clips = sorted(drawn, key=lambda c: c.seconds)[turn * size : (turn + 1) * size]
        draw = random.Random(f"{self.seed}/{step}/noise{rank or ''}")
        return self.made(clips[rank::count], draw, noisy=True)

    def request(self, draw: random.Random) -> Clip:
        spoken = draw.choice(self.voices)
        return spoken[draw.randrange(len(spoken))]

    def order(self, draw: random.Random) -> Clip:
        place = draw.randrange(len(self.orders))
        return replace(self.orders[place], words=self.forced[place])

    def digit(self, draw: random.Random) -> Clip:
        """Voices are made higher and lower; half are as on a telephone, as all of some are."""
        clip = strung(self.commands if self.commands and draw.random() < 0.5 else self.digits, draw)
        factor = draw.uniform(0.85, 1.17)
        samples = stretched(clip.samples, factor)
        if draw.random() < 0.5:
            samples = band_limited(samples, 4000)
        starts = tuple(factor * start for start in clip.starts)
        return replace(clip, samples=samples, starts=starts)

    def rest(self, draw: random.Random) -> Clip:
        """A name called, what nobody can answer, words that are none of ours, clicks; or part of a
        reading or a noise, short parts as likely as long ones: they are what is taken for digits
        and small talk."""
        kind = draw.choice(REST)
        if kind == "sentence":
            return self.sentences[draw.randrange(len(self.sentences))]
        if kind == "name":
            return draw.choice(self.names)
        if kind == "phrase" and self.others:
            return phrase(self.others, draw)
        if kind == "clicks":
            return clicks(draw)
        clip = draw.choice(self.noises if kind == "noise" else self.reading)
        length = round(RATE * 0.4 * 12.5 ** draw.random())  # 0.4 to 5 s
        start = draw.randrange(max(1, len(clip.samples) - length))
        return replace(clip, samples=clip.samples[start : start + length])

    def made(self, clips: Sequence[Clip], draw: random.Random, *, noisy: bool) -> Batch:
        mels, starts = [], []
        for clip in clips:
            samples, slower, later = clip.samples, 1.0, 0.0
            if noisy:
                samples, slower, later = augment(clip, draw, self.noises, self.rooms)
            mel = self.mel(samples)
            mels.append(masked(mel, draw) if noisy else mel)
            starts.append(tuple(later + slower * start for start in clip.starts))
        return Batch(mels, clips, starts)


class Batch:
    """Clips as the ears get them."""

    def __init__(
        self, mels: Sequence[Tensor], clips: Sequence[Clip], starts: Sequence[tuple[float, ...]]
    ) -> None:
        """`starts`: seconds of each word in what was made of the clip, where they are known."""
        self.lengths = torch.tensor([len(m) for m in mels])
        self.mels = nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
        self.clips, self.starts = clips, starts
        self.words = [clip.words for clip in clips]
        self.strange = [clip.words is None and clip.slots is None for clip in clips]


def masked(mel: Tensor, draw: random.Random) -> Tensor:
    """SpecAugment: two bands and two stretches of time are silenced."""
    mel = mel.clone()
    for _ in range(2):
        width = draw.randint(0, 20)
        low = draw.randint(0, mel.shape[1] - width)
        mel[:, low : low + width] = 0
        width = min(len(mel), draw.randint(0, 12))
        begin = draw.randint(0, len(mel) - width)
        mel[begin : begin + width] = 0
    return mel


@torch.no_grad()
def settle_norms(ears: Ears, sounds: Sounds, count: int = 60) -> None:
    """Batch normalisation's means, measured anew: they are of the weights as they are now."""
    norms = [m for m in ears.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    ears.train()
    for step in range(count):
        batch = sounds.batch(step)
        ears(batch.mels, batch.lengths)
    for norm in norms:
        norm.momentum = 0.1


def losses(ears: Ears, batch: Batch) -> dict[str, Tensor]:
    by_ctc, by_frame, lengths = ears(batch.mels, batch.lengths)
    made = {"ctc": ctc_loss(ears, batch, by_ctc, lengths)}
    made["frame"] = frame_loss(ears, batch, by_frame)
    quiet = by_ctc[:, :, [ears.blank, ears.words[UNKNOWN]]].logsumexp(-1)
    none = [quiet[n, : lengths[n]] for n, strange in enumerate(batch.strange) if strange]
    made["strange"] = -torch.cat(none).mean() if none else made["ctc"] * 0
    return made


def ctc_loss(ears: Ears, batch: Batch, scores: Tensor, lengths: Tensor) -> Tensor:
    """Per word, over the clips whose words are known; scores (b, t, words + 1) are logarithms."""
    known = [n for n, words in enumerate(batch.words) if words is not None]
    if not known:
        return scores.sum() * 0
    targets = [torch.tensor(ears.ids(batch.words[n] or ()), dtype=torch.long) for n in known]
    sizes = torch.tensor([len(t) for t in targets])
    loss = F.ctc_loss(
        scores[known].transpose(0, 1), nn.utils.rnn.pad_sequence(targets, batch_first=True),
        lengths[known], sizes, ears.blank, reduction="none", zero_infinity=True,
    )  # fmt: skip
    return (loss / sizes.clamp(min=1)).mean()


def frame_loss(ears: Ears, batch: Batch, by_frame: Tensor) -> Tensor:
    """Cross-entropy of the word in each position, where its time is known."""
    scores, labels = [], []
    for n, (words, starts) in enumerate(zip(batch.words, batch.starts, strict=True)):
        if words is None or not starts:
            continue
        edges = [s / STEP for s in starts]
        places = torch.arange(0, int(edges[-1]) + 3)  # the last word's end is not told
        places = places[places < by_frame.shape[1]]
        last = torch.bucketize(places + 0.5, torch.tensor(edges)) - 1
        ids = torch.tensor([*ears.ids(words), ears.blank])
        labels.append(ids[torch.where(last < 0, len(words), last)])
        scores.append(by_frame[n, places])
    if not scores:
        return by_frame.sum() * 0
    return F.nll_loss(torch.cat(scores), torch.cat(labels))


@torch.no_grad()
def force(ears: Ears, sounds: Sounds) -> None:
    """Choose each real order's wording; an opening that wins by being short is handicapped."""
    ears.eval()
    scores: list[dict[tuple[str, ...], float]] = []
    by_opening: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for clip in sounds.orders:
        batch = sounds.made([clip], random.Random(0), noisy=False)
        ctc, _, _ = ears(batch.mels, batch.lengths)
        scores.append(likelihoods(ears, ctc[0], wordings(clip.slots or {})))
        best: dict[tuple[str, ...], float] = {}
        for words, score in scores[-1].items():
            key = opening_of(words)
            best[key] = max(best.get(key, -np.inf), score)
        for key, score in best.items():
            by_opening[key].append(score - max(best.values()))
    mean = {key: float(np.mean(found)) for key, found in by_opening.items()}
    sounds.forced = [max(s, key=lambda w: s[w] - mean[opening_of(w)]) for s in scores]
    ears.train()


def opening_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """All up to the article, and the article."""
    place = next(n for n, word in enumerate(words) if n and word in ("a", "an"))
    return words[: place + 1]


def likelihoods(
    ears: Ears, scores: Tensor, candidates: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], float]:
    """CTC log-likelihood of each candidate; scores (positions, words + 1)."""
    targets = [torch.tensor(ears.ids(words)) for words in candidates]
    sizes = torch.tensor([len(t) for t in targets])
    many = scores[:, None].expand(-1, len(targets), -1)
    lengths = torch.full((len(targets),), len(scores))
    loss = F.ctc_loss(
        many, nn.utils.rnn.pad_sequence(targets, batch_first=True), lengths, sizes, ears.blank,
        reduction="none",
    )  # fmt: skip
    return dict(zip(candidates, (-loss).tolist(), strict=True))


@torch.no_grad()
def heard(ears: Ears, sounds: Sounds, clip: Clip) -> list[str]:
    """The words of a clip, by the best path."""
    batch = sounds.made([clip], random.Random(0), noisy=False)
    ctc, _, _ = ears(batch.mels, batch.lengths)
    path = ctc[0].argmax(-1).tolist()
    rows = [
        row for n, row in enumerate(path) if row != ears.blank and (n == 0 or row != path[n - 1])
    ]
    words = list(ears.words)
    return [words[row] for row in rows]


def slots_right(words: Sequence[str], slots: dict[str, str]) -> int:
    """How many slot values were heard, word for word."""
    said = f" {' '.join(words)} "
    return sum(f" {value} " in said for value in slots.values())


def measure(ears: Ears, sounds: Sounds) -> str:
    ears.eval()
    right = total = whole = 0
    for clip in sounds.held:
        slots = dict(clip.slots or {})
        found = slots_right(heard(ears, sounds, clip), slots)
        right, total, whole = right + found, total + len(slots), whole + (found == len(slots))
    told = f"held out: slots {right}/{total}, orders {whole}/{len(sounds.held)}"
    for name, clips in (("digits", sounds.held_digits), ("commands", sounds.held_commands)):
        some = random.Random(1).sample(clips, min(100, len(clips)))
        right = sum(heard(ears, sounds, c) == list(c.words or ()) for c in some)
        told += f", {name} {right}/{len(some)}"
    ears.train()
    return told


def begin(ears: Ears, sounds: Sounds, folder: Path) -> None:
    """A checkpoint's ears, and teachers that fit them."""
    heard = load_speech(folder, choose("cpu", "fp32")).ears.conformer
    # counts of batches, which only training has, are kept
    ears.conformer.load_state_dict(ears.conformer.state_dict() | heard.state_dict())
    heads = [*ears.by_ctc.parameters(), *ears.by_frame.parameters()]
    adam = torch.optim.AdamW(heads, lr=3e-3, weight_decay=0.0)
    ears.conformer.requires_grad_(False)
    for step in range(HEADS):
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(ears, sounds.batch(step))
        torch.stack(list(parts.values())).sum().backward()
        adam.step()
        adam.zero_grad()
    ears.conformer.requires_grad_(True)


def train(
    sounds: Sounds, folder: Path, steps: int, seed: int, older: Path | None = None,
    together: Together = ALONE,
) -> Ears:  # fmt: skip
    torch.manual_seed(seed)
    ears = Ears(vocabulary())
    training = Training(ears, AGAIN if older else PLAN)
    state = folder / "ears.safetensors"
    if state.exists():
        training.load(state)
        settle_norms(ears, sounds)
    elif older:
        begin(ears, sounds, older)
        training = Training(ears, AGAIN)
    together.same(ears.state_dict().values())
    if training.step or older:
        force(ears, sounds)
    first, start = training.step, time.process_time()
    moments = {round((FIRST + FORCE * n) * steps) for n in range(5)}
    while training.step < steps:
        if training.step in moments:
            together.same(ears.buffers())  # means of normalisation: each measures its own
            force(ears, sounds)
        batch = sounds.batch(training.step)
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(ears, batch)
        weight = 1.0 if training.step < steps / 2 else 0.3
        training.update(
            parts["ctc"] + weight * parts["frame"] + parts["strange"], training.step / steps,
            together.average,
        )  # fmt: skip
        if together.rank:
            continue
        if training.step % 25 == 0:
            rate = (time.process_time() - start) / (training.step - first)
            told = " ".join(f"{k} {v.item():.3f}" for k, v in parts.items())
            print(f"{training.step} {told} {rate:.2f} s/step", flush=True)
        if training.step % 100 == 0:
            training.save(state)
        if training.step % 500 == 0:
            print(measure(ears, sounds), flush=True)
    if together.rank == 0:
        training.save(state)
    training.use_averages()
    settle_norms(ears, sounds)
    return ears


def trained(together: Together, args: argparse.Namespace) -> None:
    """What each of the processes does."""
    sounds = Sounds(args.data, args.run, args.seed, single=args.commands, part=together.part)
    ears = train(sounds, args.run, args.steps, args.seed, args.begin, together)
    if together.rank == 0:
        print(measure(ears, sounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--begin", type=Path, help="a checkpoint's folder to go on from")
    parser.add_argument("--commands", type=Path, help="folder of Speech Commands, or a part of it")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--processes", type=int, default=1, help="side by side, a part of each step in each"
    )
    args = parser.parse_args()
    with joined(args.processes, trained, args) as together:
        trained(together, args)


if __name__ == "__main__":
    main()
