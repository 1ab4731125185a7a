"""Trains nano-audio's ears: log-mel -> FastConformer, with words as its teachers.

Two heads that are not shipped teach it: CTC over words and, where the times of words are known, the
word in each 80 ms. Real orders have labels instead of words: of all wordings with those labels the
likeliest is taken, with each opening's mean score over all clips subtracted, since bare CTC scores
favour the shortest. Redone every fifth of the run.
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
from nano_audio_augment import augment
from nano_audio_clips import (
    UNKNOWN,
    Clip,
    Synthetic,
    barista,
    digits,
    names,
    rooms,
    strange,
    strung,
    vocabulary,
    wordings,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from audio.config import EncoderConfig, MelConfig
from audio.mel import LogMel
from lfm2_mm.train import Plan, Training

ENCODER = EncoderConfig(layers=4, width=144, heads=4, feed_forward=576, channels=32)
STEP = ENCODER.factor * 160 / 16_000  # s a position
PLAN = Plan(rate=2e-3, warm_up=0.03, average=0.998)
ORDERS = (16, 5, 2, 1)  # clips of a batch: synthetic, real orders, digits strung, names or strange
FORCE = 0.2  # part of the run after which the wordings of real orders are chosen anew
FIRST = 0.05


class Ears(nn.Module):
    """The conformer and its teachers."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.encoder = ParakeetEncoder(parakeet(ENCODER))
        self.by_ctc = nn.Linear(ENCODER.width, len(words) + 1)  # the last is CTC's blank
        self.by_frame = nn.Linear(ENCODER.width, len(words) + 1)  # the last is silence
        self.words = {word: row for row, word in enumerate(words)}
        self.blank = len(words)

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mels (b, t, 128), frames of each -> CTC and frame log-probabilities, their lengths."""
        mask = torch.arange(mels.shape[1]) < lengths[:, None]
        hidden = self.encoder(mels, attention_mask=mask).last_hidden_state.float()
        return (
            self.by_ctc(hidden).log_softmax(-1),
            self.by_frame(hidden).log_softmax(-1),
            (lengths + ENCODER.factor - 1) // ENCODER.factor,
        )

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.words.get(word, self.words[UNKNOWN]) for word in words]


def parakeet(config: EncoderConfig) -> ParakeetEncoderConfig:
    made = ParakeetEncoderConfig(
        hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=config.feed_forward,
        num_mel_bins=config.features, conv_kernel_size=config.kernel,
        subsampling_factor=config.factor, subsampling_conv_channels=config.channels,
        scale_input=False, attention_bias=True, convolution_bias=True, layerdrop=0.0,
        dropout=0.05, dropout_positions=0.0, activation_dropout=0.05, attention_dropout=0.05,
    )  # fmt: skip
    made._attn_implementation = "sdpa"
    return made


class Sounds:
    """All clips, and the batches drawn from them: a step's batch hangs on seed and step alone."""

    def __init__(self, data: Path, run: Path, seed: int) -> None:
        self.synthetic, self.seed = Synthetic(run / "spoken"), seed
        self.orders, self.held = barista(data)
        self.digits, self.held_digits = digits(data)
        self.names = names(data)
        self.reading, self.noises = strange(data)
        self.rooms = rooms(data)
        self.mel = LogMel(MelConfig())
        self.forced: list[tuple[str, ...] | None] = [None] * len(self.orders)

    def batch(self, step: int) -> Batch:
        draw = random.Random(f"{self.seed}/{step}")
        synthetic, real, strings, rest = ORDERS
        clips = [self.synthetic[draw.randrange(len(self.synthetic))] for _ in range(synthetic)]
        for _ in range(real):
            place = draw.randrange(len(self.orders))
            clips.append(replace(self.orders[place], words=self.forced[place]))
        clips += [strung(self.digits, draw) for _ in range(strings)]
        pools = (self.names, self.reading, self.noises)
        clips += [draw.choice(draw.choice(pools)) for _ in range(rest)]
        return self.made(clips, draw, noisy=True)

    def made(self, clips: Sequence[Clip], draw: random.Random, *, noisy: bool) -> Batch:
        mels, slower = [], []
        for clip in clips:
            samples, factor = clip.samples[: 16_000 * 6], 1.0
            if noisy:
                short = replace(clip, samples=samples)
                samples, factor = augment(short, draw, self.noises, self.rooms)
            else:
                samples = np.pad(samples, (0, 1600))
            mel = self.mel(samples)
            mels.append(masked(mel, draw) if noisy else mel)
            slower.append(factor)
        return Batch(mels, [c.words for c in clips], [c.starts for c in clips], slower)


class Batch:
    def __init__(
        self, mels: Sequence[Tensor], words: Sequence[tuple[str, ...] | None],
        starts: Sequence[tuple[float, ...]], slower: Sequence[float],
    ) -> None:  # fmt: skip
        self.lengths = torch.tensor([len(m) for m in mels])
        self.mels = nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
        self.words, self.starts, self.slower = words, starts, slower


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


def losses(ears: Ears, batch: Batch) -> dict[str, Tensor]:
    by_ctc, by_frame, lengths = ears(batch.mels, batch.lengths)
    known = [n for n, words in enumerate(batch.words) if words is not None]
    targets = [torch.tensor(ears.ids(batch.words[n] or ()), dtype=torch.long) for n in known]
    sizes = torch.tensor([len(t) for t in targets])
    ctc = F.ctc_loss(
        by_ctc[known].transpose(0, 1), nn.utils.rnn.pad_sequence(targets, batch_first=True),
        lengths[known], sizes, ears.blank, reduction="none", zero_infinity=True,
    )  # fmt: skip
    made = {"ctc": (ctc / sizes.clamp(min=1)).mean()}
    made["frame"] = frame_loss(ears, batch, by_frame)
    strange_ = [n for n, words in enumerate(batch.words) if words is None and not batch.starts[n]]
    quiet = by_ctc[:, :, [ears.blank, ears.words[UNKNOWN]]].logsumexp(-1)
    none = [n for n in strange_ if n >= sum(ORDERS[:3])]
    made["strange"] = (
        -torch.cat([quiet[n, : lengths[n]] for n in none]).mean() if none else ctc.sum() * 0
    )
    return made


def frame_loss(ears: Ears, batch: Batch, by_frame: Tensor) -> Tensor:
    """Cross-entropy of the word in each position, where its time is known."""
    scores, labels = [], []
    for n, (words, starts) in enumerate(zip(batch.words, batch.starts, strict=True)):
        if words is None or not starts:
            continue
        edges = [s * batch.slower[n] / STEP for s in starts]
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
    some = random.Random(1).sample(sounds.held_digits, 100)
    digit = sum(heard(ears, sounds, c) == list(c.words or ()) for c in some)
    ears.train()
    return f"held out: slots {right}/{total}, orders {whole}/{len(sounds.held)}, digits {digit}/100"


def train(sounds: Sounds, folder: Path, steps: int, seed: int) -> Ears:
    torch.manual_seed(seed)
    ears = Ears(vocabulary())
    training = Training(ears, PLAN)
    state = folder / "ears.safetensors"
    if state.exists():
        training.load(state)
        force(ears, sounds)
    first, start = training.step, time.process_time()
    moments = {round((FIRST + FORCE * n) * steps) for n in range(5)}
    while training.step < steps:
        if training.step in moments:
            force(ears, sounds)
        batch = sounds.batch(training.step)
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(ears, batch)
        weight = 1.0 if training.step < steps / 2 else 0.3
        training.update(
            parts["ctc"] + weight * parts["frame"] + parts["strange"], training.step / steps
        )
        if training.step % 25 == 0:
            rate = (time.process_time() - start) / (training.step - first)
            told = " ".join(f"{k} {v.item():.3f}" for k, v in parts.items())
            print(f"{training.step} {told} {rate:.2f} s/step", flush=True)
        if training.step % 250 == 0:
            training.save(state)
            print(measure(ears, sounds), flush=True)
    training.save(state)
    training.use_averages()
    return ears


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sounds = Sounds(args.data, args.run, args.seed)
    ears = train(sounds, args.run, args.steps, args.seed)
    print(measure(ears, sounds))


if __name__ == "__main__":
    main()
