"""One rendering for each word nano-audio can say, and the codes that stand for its frames.

Words are cut out of running speech; of all times a word was said, the one nearest to all others is
kept. Codebook 0 says how many pitch periods a frame has; 1 to 3 are residual k-means codes of its
envelopes. Everything that is said later is units side by side. `--like FOLDER` takes the renderings
of a finished checkpoint, whose mouth is to be gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_audio_judge import Judge, same
from nano_audio_language import LETTERS, draw_reply, lexicon, words_of
from nano_audio_voice import (
    BANDS,
    FLOOR,
    PARTS,
    PERIODS,
    RATE,
    Flite,
    Frames,
    analyse,
    joined,
    silence,
    sound,
)

BOOKS, CODES = 4, 512  # codebooks, codes in each; book 0 uses few of its codes
PAUSES = {",": 2, ".": 3, "?": 3}  # frames
NAMES = """ay bee see dee ee eff gee aitch eye jay kay ell em en oh pee cue are ess tee you vee
double_you ex why zee"""
SPOKEN = dict(zip(LETTERS, NAMES.split(), strict=True))
CARRIERS = ("the {} is here.", "I said {} again.", "it was {} today.")
VOICING = 2.0  # weight of a voicing flag beside an envelope's 48 bands
COMPONENTS = 64
CANDIDATES, CONTEXTS = 7, 4  # renderings tried of a word, phrases in which each is tried


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

    def encode(self, frames: Frames) -> np.ndarray:
        """Codes (n, 4) nearest to the frames."""
        left = vectors(frames) - self.centre
        picks = [np.where(frames.periods > 0, frames.periods - PERIODS[0] + 1, 0)]
        for table in self.means:
            picks.append(nearest(left, table))
            left = left - table[picks[-1]]
        return np.stack(picks, 1)

    def say(self, text: str) -> np.ndarray:
        """Codes (n, 4) of a text all of whose words are known."""
        return np.concatenate([self.codes[word] for word in words_of(text)])

    def sound(self, text: str) -> np.ndarray:
        return sound(self.frames(self.say(text)))

    def save(self, path: Path) -> None:
        words = {f"word/{word}": codes.astype(np.int16) for word, codes in self.codes.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = {"means": self.means, "centre": self.centre}
        np.savez_compressed(path, **tables, **words)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Of all words' codes: a model speaks with the units it was trained on."""
        both = "".join(f"{word} {codes.tolist()}\n" for word, codes in sorted(self.codes.items()))
        return hashlib.sha256(both.encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> Units:
        with np.load(path, allow_pickle=False) as file:
            words = {k[5:]: file[k].astype(np.int64) for k in file.files if k.startswith("word/")}
            return cls(words, file["means"], file["centre"])


def make_units(
    seed: int = 0, replies: int = 700, tell: Callable[[str], None] = print,
    like: Path | None = None,
) -> Units:  # fmt: skip
    """Speak a corpus, cut it, find codes for the frames, and choose a rendering of every word."""
    said = record(seed, replies, tell)
    missing = [word for word in lexicon() if word not in said]
    if missing:
        raise ValueError(f"never heard in the corpus: {missing}")
    ranked = {word: by_nearness(said[word])[:CANDIDATES] for word in lexicon()}
    first = [times[0] for times in ranked.values()] + [silence(n) for n in PAUSES.values()]
    tell(f"{len(ranked)} words, {sum(len(f) for f in first)} frames")
    units = fit(first, [f for many in said.values() for f in many], seed, tell)
    codes = {word: [units.encode(f) for f in times] for word, times in ranked.items()}
    pauses = {mark: units.encode(silence(count)) for mark, count in PAUSES.items()}
    start = Units({w: c[0] for w, c in codes.items()} | pauses, units.means, units.centre)
    return chosen_by(like, start, codes) if like else choose(start, codes, seed, tell)


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


def by_nearness(times: Sequence[Frames]) -> list[Frames]:
    """Renderings, those first that lie nearest to all others of the commonest length."""
    lengths = [len(f) for f in times]
    common = max(set(lengths), key=lambda n: (lengths.count(n), n))
    middle = np.median([vectors(f) for f in times if len(f) == common], axis=0)

    def distance(frames: Frames) -> float:
        if len(frames) != common:
            return np.inf
        return float(np.abs(vectors(frames) - middle).mean())

    rest = sorted((f for f in times if len(f) != common), key=lambda f: abs(len(f) - common))
    return sorted((f for f in times if len(f) == common), key=distance)[: CANDIDATES - 2] + rest


def vectors(frames: Frames) -> np.ndarray:
    """(n, 294): what books 1 to 3 stand for; quiet bands are cut off at the floor."""
    low = LOUDEST - FLOOR
    parts = np.maximum(frames.envelope, low)
    flags = frames.voiced[..., None] * VOICING
    return np.concatenate([parts, flags], -1).reshape(len(frames), -1).astype(np.float32)


LOUDEST = 1.5  # log amplitude of flite's strongest band


def fit(
    chosen: Sequence[Frames], corpus: Sequence[Frames], seed: int, tell: Callable[[str], None]
) -> Units:
    """Codebooks 1 to 3, fitted on the first choice of every word and on some of the corpus."""
    units = vectors(joined(list(chosen)))
    rest = vectors(joined(list(corpus)))
    keep = np.random.default_rng(seed).permutation(len(rest))[: 2 * len(units)]
    # float64: products differ from one processor to the next by their last bits, and in float32
    # that moves points to another mean, so that no code would mean the same
    data = np.concatenate([units, units, rest[keep]]).astype(np.float64)
    centre = data.mean(0)
    _, _, axes = np.linalg.svd(data - centre, full_matrices=False)
    left = (data - centre) @ axes[:COMPONENTS].T
    means = []
    for book in range(BOOKS - 1):
        table = kmeans(left, CODES, seed + book)
        left = left - table[nearest(left, table)]
        means.append(table @ axes[:COMPONENTS])
        tell(f"book {book + 1}: {np.abs(left @ axes[:COMPONENTS]).mean():.3f} nats left")
    return Units({}, np.stack(means).astype(np.float32), centre.astype(np.float32))


def choose(
    units: Units, codes: Mapping[str, Sequence[np.ndarray]], seed: int, tell: Callable[[str], None]
) -> Units:
    """Of each word's candidates, the one that a recogniser hears right most often among others."""
    judge = Judge(lexicon())
    best = dict(units.codes)
    kept = {}
    for number, (word, candidates) in enumerate(codes.items()):
        phrases = contexts(word, list(codes), random.Random(f"{seed}/{word}"))
        scores: list[int] = []
        for candidate in candidates:
            tried = Units(best | {word: candidate}, units.means, units.centre)
            wrong = sum(heard_wrong(judge, tried, word, phrase) for phrase in phrases)
            scores.append(wrong)
            if wrong == 0:
                break
        place = int(np.argmin(scores))
        best[word], kept[word] = candidates[place], scores[place]
        if number % 50 == 49:
            tell(f"{number + 1} of {len(codes)} words chosen")
    bad = {word: wrong for word, wrong in kept.items() if wrong > CONTEXTS // 2}
    tell(f"{sum(kept.values())} of {CONTEXTS * len(kept)} heard wrong; worst: {bad}")
    return Units(best, units.means, units.centre)


def chosen_by(folder: Path, units: Units, codes: Mapping[str, Sequence[np.ndarray]]) -> Units:
    """Of each word's candidates, the one that a checkpoint says. (A recogniser's choice hangs on
    last bits of the sound, which differ from one processor to the next.)"""
    from measure_audio import Asked

    import audio

    asked = Asked(audio.open(folder, dtype="fp32", device="cpu"), seed=0)
    kept = {}
    for word, candidates in codes.items():
        said = asked.read(word).codes
        kept[word] = max(candidates, key=lambda c: likeness(said, c))
    return Units(dict(units.codes) | kept, units.means, units.centre)


def likeness(said: np.ndarray, word: np.ndarray) -> float:
    """Codes of a word that are where they should be, at its best place, less those that are not."""
    places = range(max(1, len(said) - len(word) + 1))
    return max(2 * float((said[p : p + len(word)] == word[: len(said)]).sum()) for p in places) - (
        word.size
    )


def contexts(word: str, words: Sequence[str], draw: random.Random) -> list[list[str]]:
    """Phrases of three other words with `word` at their beginning, inside, and at their end."""
    phrases = [draw.sample(words, 3) for _ in range(CONTEXTS)]
    for number, phrase in enumerate(phrases):
        phrase.insert(number % 4, word)
    return phrases


def heard_wrong(judge: Judge, units: Units, word: str, phrase: Sequence[str]) -> bool:
    heard = judge.hear(units.sound(" ".join(phrase) + "."), RATE)
    name = SPOKEN.get(word, word).replace("double_you", "W")
    return same(name) not in {same(h) for h in heard} and same(word) not in {same(h) for h in heard}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--like", type=Path, help="a checkpoint's folder: the units it speaks with")
    args = parser.parse_args()
    units = make_units(args.seed, like=args.like)
    units.save(args.run / "units.npz")
    print(f"sha256 of the words' codes: {units.digest()}")


if __name__ == "__main__":
    main()
