"""What nano-audio's ears are trained on: customers, synthetic and real, digits, everything else.

A clip is samples at 16 kHz, with words and times of words where those are known. Barista tells
slots instead of words: `wordings` gives every sentence that has them.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_audio_language import (
    DIGITS,
    KINDS,
    OPENINGS,
    SORRY,
    TALK,
    VALUES,
    digits_reply,
    order_reply,
)

from lfm2_mm.errors import BadInput

RATE = 16_000
UNKNOWN = "<unk>"
HELD_CLUSTERS = frozenset({4, 13, 19, 22, 29, 33, 47, 50})  # of barista, for measuring only
HELD_SPEAKER = "lucas"  # of the digits
HELD_END = "0"  # of the names of speakers of Speech Commands: one of sixteen
FRONT = ("size", "roast", "numberOfShots")


@dataclass(frozen=True)
class Clip:
    """`words` None: not known (see `slots`), or speech and noise that holds no known word.
    `reply` is what the counter answers."""

    samples: np.ndarray  # (n,) float32
    words: tuple[str, ...] | None
    starts: tuple[float, ...] = ()  # s, of each word
    slots: Mapping[str, str] | None = None
    name: str = ""
    reply: str = SORRY

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def vocabulary() -> list[str]:
    """The words the ears tell apart; all others are <unk>."""
    texts = [*OPENINGS, *DIGITS, "a an with and my table is number"]
    texts += [value for values in VALUES.values() for value in values]
    texts += [way for ways, _ in TALK.values() for way in ways]
    return [UNKNOWN, *dict.fromkeys(word for text in texts for word in text.split())]


def wordings(slots: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Every sentence of the benchmark's grammar that has these slots."""
    front = [name for name in FRONT if name in slots]
    extras = [name for name in KINDS if name in slots]
    found = []
    for order in itertools.permutations(front):
        head = " ".join(slots[n] for n in (*order, "coffeeDrink") if n in slots)
        for tail in itertools.permutations(extras):
            with_ = f" with {' and '.join(slots[n] for n in tail)}" if tail else ""
            for opening, article in itertools.product(OPENINGS, ("a", "an")):
                found.append(tuple(f"{opening} {article} {head}{with_}".split()))
    return found


class Synthetic:
    """What nano_audio_speakers wrote, read from disk as it is needed."""

    def __init__(self, folder: Path) -> None:
        self._samples = np.memmap(folder / "samples.i16", np.int16, mode="r")
        with (folder / "turns.jsonl").open() as lines:
            self.rows = [json.loads(line) for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Clip:
        row = self.rows[place]
        part = self._samples[row["start"] : row["start"] + row["length"]]
        samples = part.astype(np.float32) / 32768
        words = tuple(row["request"].split())
        return Clip(samples, words, tuple(row["starts"]), row["slots"], row["voice"], row["reply"])


def barista(data: Path) -> tuple[list[Clip], list[Clip]]:
    """Real orders: to train on, and held out by whole clusters of speakers."""
    folder = data / "speech" / "barista"
    train: list[Clip] = []
    held: list[Clip] = []
    for row in json.loads((folder / "labels.json").read_text()):
        slots, name = row["slots"], row["file"]
        clip = Clip(read(folder / name), None, (), slots, name, order_reply(slots))
        (held if row["speaker_cluster"] in HELD_CLUSTERS else train).append(clip)
    return train, held


def digits(data: Path) -> tuple[list[Clip], list[Clip]]:
    """Real digits, one a clip: to train on, and those of the speaker held out."""
    train: list[Clip] = []
    held: list[Clip] = []
    for path in sorted((data / "speech" / "fsdd").glob("*.json")):
        told = json.loads(path.read_text())
        whole = read(path.with_suffix(".ogg"), told["sample_rate"])
        for name, start, end in told["clips_name_start_end"]:
            scale = RATE / told["sample_rate"]
            samples = whole[round(start * scale) : round(end * scale)]
            digit = DIGITS[int(name[0])]
            clip = Clip(samples, (digit,), (0.0,), name=name, reply=digits_reply(digit))
            (held if path.stem == HELD_SPEAKER else train).append(clip)
    return train, held


def commands(folder: Path) -> tuple[list[Clip], list[Clip], list[Clip]]:
    """Single words of many speakers (Speech Commands, Warden 2018; a folder for each word, or for
    some): digits to train on, digits of speakers held out, other words. Raises BadInput where
    there are none."""
    train: list[Clip] = []
    held: list[Clip] = []
    others: list[Clip] = []
    for path in sorted(folder.glob("[a-z]*/*_nohash_*.wav")):
        word, (speaker, _, turn) = path.parent.name, path.stem.split("_")
        samples, away = trimmed(read(path)), speaker.endswith(HELD_END)
        if word in DIGITS:
            name = f"{DIGITS.index(word)}_{speaker}_{turn}"
            clip = Clip(samples, (word,), (0.0,), name=name, reply=digits_reply(word))
            (held if away else train).append(clip)
        elif not away:
            others.append(Clip(samples, None, name=f"{word}_{speaker}_{turn}"))
    if not train:
        raise BadInput(f"{folder} holds no digits; wanted: zero/…_nohash_0.wav to nine/…")
    return train, held, others


def trimmed(samples: np.ndarray) -> np.ndarray:
    """What is loud of a clip, and a little before and after it."""
    power = np.convolve(samples**2, np.ones(RATE // 40) * 40 / RATE, "same")
    loud = np.flatnonzero(power > 0.03 * power.max())
    return samples[max(0, loud[0] - RATE // 25) : loud[-1] + RATE // 16] if len(loud) else samples


def strung(clips: Sequence[Clip], draw: random.Random) -> Clip:
    """One or some digits of one speaker, one after the other with short pauses. What comes first
    is each digit equally often."""
    digit = draw.choice(sorted({c.words for c in clips if c.words}))
    clip = draw.choice([c for c in clips if c.words == digit])
    speaker = clip.name.split("_")[1]
    own = [c for c in clips if c.name.split("_")[1] == speaker]
    parts: list[np.ndarray] = []
    words: list[str] = []
    starts, at = [], 0
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4, 5))):
        longest = 0.25 if parts else draw.choice((0.0, 0.25))
        gap = np.zeros(round(draw.uniform(0.0, longest) * RATE), np.float32)
        starts.append((at + len(gap)) / RATE)
        words += clip.words or ()
        parts += [gap, clip.samples]
        at += len(gap) + len(clip.samples)
        clip = draw.choice(own)
    reply = digits_reply(" ".join(words))
    return Clip(np.concatenate(parts), tuple(words), tuple(starts), name=speaker, reply=reply)


def phrase(clips: Sequence[Clip], draw: random.Random) -> Clip:
    """One to four words that are none of ours, run together."""
    parts = [draw.choice(clips).samples for _ in range(draw.choice((1, 1, 2, 3, 4)))]
    return Clip(np.concatenate([p / (np.abs(p).max() + 1e-6) for p in parts]), None)


def names(data: Path) -> list[Clip]:
    """Real names called: "computer", "smart mirror", …"""
    found, answer = [], TALK["name called"][1]
    for path in sorted((data / "speech" / "wakewords").glob("*.json")):
        told = json.loads(path.read_text())
        whole = read(path.with_suffix(".ogg"))
        for name, start, end in told["clips_name_start_end"]:
            words = tuple(path.stem.split("_"))
            found.append(Clip(whole[start:end], words, name=f"{path.stem}/{name}", reply=answer))
    return found


def strange(data: Path) -> tuple[list[Clip], list[Clip]]:
    """Reading aloud in which no word is known; and noises without any word."""
    reading, noise = _strange(data, held=False)
    draw = np.random.default_rng(3)
    made = [np.zeros(5 * RATE), draw.standard_normal(5 * RATE) * 0.1]
    noise += [Clip(samples.astype(np.float32), (), name="made") for samples in made]
    noise.append(Clip(read(data / "speech" / "noise" / "kitchen_60s.ogg"), (), name="kitchen"))
    return reading, noise


def strange_held(data: Path) -> tuple[list[Clip], list[Clip]]:
    """Every fifth of both, for measuring: other readers, other noises."""
    return _strange(data, held=True)


def _strange(data: Path, held: bool) -> tuple[list[Clip], list[Clip]]:
    found = []
    for pattern in ("librispeech_6s/*.ogg", "esc10/*/*.ogg"):
        words = None if pattern.startswith("libri") else ()
        paths = sorted((data / "speech").glob(pattern))
        chosen = [p for n, p in enumerate(paths) if (n % 5 == 4) == held]
        found.append([Clip(read(p), words, name=p.name) for p in chosen])
    return found[0], found[1]


def rooms(data: Path) -> list[np.ndarray]:
    """Impulse responses, their strongest sample first, scaled to it."""
    found = []
    for path in sorted((data / "speech" / "noise").glob("rir*.flac")):
        response = read(path)
        start = int(np.abs(response).argmax())
        found.append(response[start : start + RATE // 2] / response[start])
    return found


def read(path: Path, rate: int | None = None) -> np.ndarray:
    """(n,) float32 at 16 kHz."""
    import soundfile
    import torch
    from torchaudio.functional import resample

    samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(1)
    if (rate or found) == RATE:
        return mono
    return resample(torch.from_numpy(mono), rate or found, RATE).numpy()
