"""One rendering for each word nano-audio can say, and the codes that stand for its frames.

Words are cut out of running speech; of all times a word was said, the one nearest to all others is
kept. Codebook 0 says how many pitch periods a frame has; 1 to 3 are residual k-means codes of its
envelopes. Everything that is said later is units side by side.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_audio_language import LETTERS, draw_reply, lexicon, words_of
from nano_audio_voice import (
    BANDS,
    FLOOR,
    PARTS,
    PERIODS,
    Flite,
    Frames,
    analyse,
    joined,
    silence,
    sound,
)

BOOKS, CODES = 4, 512  # codebooks, codes in each; book 0 uses few of its codes
PAUSES = {",": 2, ".": 3, "?": 3}  # frames
SPOKEN = dict(zip(LETTERS, ("ay bee see dee ee eff gee aitch eye jay kay ell em en oh pee cue are "
                            "ess tee you vee double_you ex why zee").split(), strict=True))  # fmt: skip
CARRIERS = ("the {} is here.", "I said {} again.", "it was {} today.")
VOICING = 2.0  # weight of a voicing flag beside an envelope's 48 bands
COMPONENTS = 64


@dataclass(frozen=True)
class Units:
    """What can be said: word -> codes (frames, 4); and what the codes mean."""

    codes: Mapping[str, np.ndarray]
    means: np.ndarray  # (3, 512, 294) float32: envelopes and voicing, summed over books 1 to 3
    centre: np.ndarray  # (294,)

    def frames(self, codes: np.ndarray) -> Frames:
        """The frames that codes (n, 4) stand for."""
        flat = self.centre + sum(self.means[b, codes[:, b + 1]] for b in range(BOOKS - 1))
        parts = flat.reshape(len(codes), PARTS, BANDS + 1)
        periods = np.where(codes[:, 0] > 0, codes[:, 0] + PERIODS[0] - 1, 0)
        voiced = (parts[..., BANDS] > VOICING / 2) & (periods > 0)[:, None]
        return Frames(periods, voiced, parts[..., :BANDS].astype(np.float32))

    def say(self, text: str) -> np.ndarray:
        """Codes (n, 4) of a text all of whose words are known."""
        return np.concatenate([self.codes[word] for word in words_of(text)])

    def sound(self, text: str) -> np.ndarray:
        return sound(self.frames(self.say(text)))

    def save(self, path: Path) -> None:
        words = {f"word/{word}": codes.astype(np.int16) for word, codes in self.codes.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, means=self.means, centre=self.centre, **words)

    @classmethod
    def load(cls, path: Path) -> Units:
        with np.load(path, allow_pickle=False) as file:
            words = {k[5:]: file[k].astype(np.int64) for k in file.files if k.startswith("word/")}
            return cls(words, file["means"], file["centre"])


def make_units(seed: int = 0, replies: int = 700, tell: Callable[[str], None] = print) -> Units:
    """Speak a corpus, cut it, choose a rendering of every word, and find codes for the frames."""
    said = record(seed, replies, tell)
    missing = [word for word in lexicon() if word not in said]
    if missing:
        raise ValueError(f"never heard in the corpus: {missing}")
    chosen = {word: medoid(said[word]) for word in lexicon()}
    tell(f"{len(chosen)} words, {sum(len(f) for f in chosen.values())} frames")
    chosen |= {mark: silence(count) for mark, count in PAUSES.items()}
    return encode(chosen, [f for many in said.values() for f in many], seed, tell)


def record(seed: int, replies: int, tell: Callable[[str], None]) -> dict[str, list[Frames]]:
    """word -> every time it was said, in replies and in carrier sentences."""
    draw, flite = random.Random(seed), Flite()
    said: dict[str, list[Frames]] = defaultdict(list)
    for number in range(replies):
        text = draw_reply(draw)
        cut(flite, text, [w for w in words_of(text) if w not in PAUSES], said)
        if number % 100 == 99:
            tell(f"{number + 1} of {replies} replies spoken")
    for word in lexicon():
        if len(said[word]) < len(CARRIERS):
            for carrier in CARRIERS:
                aloud = SPOKEN.get(word, word).replace("_", " ")
                place = words_of(carrier).index("{}")
                whole: dict[str, list[Frames]] = defaultdict(list)
                names = [str(n) for n in range(len(words_of(carrier)) - 1)]
                cut(flite, carrier.format(aloud), names, whole, len(aloud.split()), place)
                said[word] += whole[str(place)]
    return said


def cut(
    flite: Flite, text: str, names: Sequence[str], said: dict[str, list[Frames]],
    wide: int = 1, place: int = -1,
) -> None:  # fmt: skip
    """Speak `text` and file its words under `names`; the word at `place` is `wide` words long."""
    samples, rate, times = flite.say(text)
    times = merged(times)
    if wide > 1:
        first, last = times[place], times[place + wide - 1]
        times[place : place + wide] = [(first[0], first[1], last[2])]
    if len(times) != len(names):
        return  # flite reads a word as several, such as "7": not one of ours
    measured = analyse(samples, rate)
    for name, (_, start, end) in zip(names, times, strict=True):
        said[name].append(measured.frames(start, end))


def merged(times: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """flite tells "I'd" as "i" and "'d": one word again."""
    out: list[tuple[str, float, float]] = []
    for word, start, end in times:
        if word.startswith("'") and out:
            out[-1] = (out[-1][0] + word, out[-1][1], end)
        else:
            out.append((word, start, end))
    return out


def medoid(times: Sequence[Frames]) -> Frames:
    """Of the renderings of the commonest length, the one nearest to all others."""
    lengths = [len(f) for f in times]
    common = max(set(lengths), key=lambda n: (lengths.count(n), n))
    same = [f for f in times if len(f) == common]
    flat = np.stack([vectors(f).ravel() for f in same])
    distance = np.abs(flat[:, None] - flat[None]).mean(-1).sum(1) if len(same) < 60 else np.abs(
        flat - np.median(flat, axis=0)).mean(-1)  # fmt: skip
    return same[int(distance.argmin())]


def vectors(frames: Frames) -> np.ndarray:
    """(n, 294): what books 1 to 3 stand for; quiet bands are cut off at the floor."""
    low = LOUDEST - FLOOR
    parts = np.maximum(frames.envelope, low)
    flags = frames.voiced[..., None] * VOICING
    return np.concatenate([parts, flags], -1).reshape(len(frames), -1).astype(np.float32)


LOUDEST = 1.5  # log amplitude of flite's strongest band


def encode(
    chosen: Mapping[str, Frames], corpus: Sequence[Frames], seed: int, tell: Callable[[str], None]
) -> Units:
    """Codes for the chosen renderings; the codebooks are fitted on them and on the corpus."""
    units = np.concatenate([vectors(f) for f in chosen.values()])
    rest = vectors(joined(list(corpus)))
    keep = np.random.default_rng(seed).permutation(len(rest))[: 2 * len(units)]
    data = np.concatenate([units, units, rest[keep]])
    centre = data.mean(0)
    _, _, axes = np.linalg.svd(data - centre, full_matrices=False)
    axes = axes[:COMPONENTS]
    left = (data - centre) @ axes.T
    target = (units - centre) @ axes.T
    means, picks = [], []
    for book in range(BOOKS - 1):
        table = kmeans(left, CODES, seed + book)
        left = left - table[nearest(left, table)]
        pick = nearest(target, table)
        target = target - table[pick]
        means.append(table @ axes)
        picks.append(pick)
        tell(f"book {book + 1}: {np.abs(target @ axes).mean():.3f} nats left")
    periods = np.concatenate([f.periods for f in chosen.values()])
    zero = np.where(periods > 0, periods - PERIODS[0] + 1, 0)
    codes = np.stack([zero, *picks], 1)
    ends = np.cumsum([len(f) for f in chosen.values()])
    split = dict(zip(chosen, np.split(codes, ends[:-1]), strict=True))
    return Units(split, np.stack(means).astype(np.float32), centre.astype(np.float32))


def kmeans(data: np.ndarray, count: int, seed: int, rounds: int = 15) -> np.ndarray:
    """(count, d) means; a cluster that runs empty starts anew at a random point."""
    random_ = np.random.default_rng(seed)
    table = data[random_.permutation(len(data))[:count]].copy()
    for _ in range(rounds):
        near = nearest(data, table)
        sums = np.zeros_like(table)
        np.add.at(sums, near, data)
        sizes = np.bincount(near, minlength=count)
        table = sums / np.maximum(sizes, 1)[:, None]
        empty = np.flatnonzero(sizes == 0)
        table[empty] = data[random_.integers(len(data), size=len(empty))]
    return table


def nearest(data: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(n,) the row of `table` nearest to each row of data."""
    square = (table**2).sum(1)
    rows = [np.argmin(square - 2 * part @ table.T, axis=1)
            for part in np.array_split(data, max(1, len(data) // 4096))]  # fmt: skip
    return np.concatenate(rows)
