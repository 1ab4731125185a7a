"""Synthetic customers: espeak-ng and flite, with the time of every word; Pico; nano-audio itself.

espeak-ng's C library (Debian's libespeak-ng1) tells word times itself. Hundreds of accents times
variants stand in for the people that no public collection of coffee orders has.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_audio_augment import stretched
from nano_audio_language import SORRY, TALK, Turn, draw_digits, draw_order, draw_talk, words_of
from nano_audio_pico import LANGUAGES, Pico
from nano_audio_units import Units
from nano_audio_voice import RATE as FINE
from nano_audio_voice import Flite

RATE = 16_000
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd",
           "en-029", "en-us-nyc")  # fmt: skip
VARIANTS = Path("/usr/lib/x86_64-linux-gnu/espeak-ng-data/voices/!v")
STRANGE = {"whisper", "whisperf", "croak", "Demonic", "Half-LifeAnnouncementSystem", "robosoft",
           "UniRobot", "caleb", "fast"}  # fmt: skip
OWN = "nano"
SHARES = (0.40, 0.62, 0.88)  # orders, digits beside, small talk beside
CLEARLY = (0.30, 0.50, 0.85)
FLITE = ("slt", "awb", "rms", "kal16")
SYNCHRONOUS, WORD, ITS_TEXT = 2, 1, 1  # speak_lib.h: output mode, event type, UTF-8
SPEED, PITCH, RANGE = 1, 3, 4  # parameters


@dataclass(frozen=True)
class Spoken:
    """A request as sound: samples (n,) int16 at 16 kHz and each word's start in seconds."""

    samples: np.ndarray
    starts: tuple[float, ...]
    turn: Turn
    voice: str


class Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("place", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class Espeak:
    """espeak-ng in process: text and a voice -> samples and word times."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._lib.espeak_Initialize(SYNCHRONOUS, 0, None, 0)
        short = ctypes.POINTER(ctypes.c_short)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, short, ctypes.c_int, ctypes.POINTER(Event))
        self._call = kind(self._receive)  # kept: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._call)
        self._parts: list[np.ndarray] = []
        self._starts: list[float] = []

    def knows(self, voice: str) -> bool:
        return bool(self._lib.espeak_SetVoiceByName(voice.encode()) == 0)

    def say(
        self, text: str, voice: str, *, speed: int, pitch: int, spread: int
    ) -> tuple[np.ndarray, int, tuple[float, ...]]:
        """Samples (n,) float32, their rate, and the start of every word in seconds."""
        self._parts, self._starts = [], []
        if not self.knows(voice):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((SPEED, speed), (PITCH, pitch), (RANGE, spread)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, ITS_TEXT, None, None)
        samples = np.concatenate(self._parts).astype(np.float32) / 32768
        return samples, self._rate, tuple(self._starts)

    def _receive(self, wave: object, count: int, events: Sequence[Event]) -> int:
        if wave and count > 0:
            self._parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        place = 0
        while events[place].type:
            if events[place].type == WORD:
                self._starts.append(events[place].milliseconds / 1000)
            place += 1
        return 0


def voices() -> list[str]:
    """Every accent with every variant that sounds like a person, in a fixed order."""
    variants = sorted(p.name for p in VARIANTS.iterdir() if p.name not in STRANGE)
    return [f"{accent}+{variant}" for accent in ACCENTS for variant in variants]


def held_out(voice: str) -> bool:
    """Voices kept for measuring: some variants in every accent, and no flite voice."""
    return voice.partition("+")[2] in {"f2", "m4", "Alicia", "klatt3", "adam", "belinda"}


def draw_turn(
    draw: random.Random, others: Sequence[str], limits: tuple[float, float, float]
) -> Turn:
    """What a customer says: orders, digits, small talk, and what nobody can answer here; `limits`
    are the shares of the first, the first two, the first three."""
    kind = draw.random()
    if kind < limits[0]:
        return draw_order(draw)
    if kind < limits[1]:
        return draw_digits(draw)
    if kind < limits[2]:
        return draw_talk(draw)
    return Turn(draw.choice(others), "other", SORRY)


def speak(turns: Iterable[Turn], draw: random.Random, measured: bool) -> Iterator[Spoken]:
    """Requests in random voices; `measured` takes the held-out voices only."""
    espeak = Espeak()
    flites = {name: Flite(name) for name in FLITE}
    names = [v for v in voices() if held_out(v) == measured and espeak.knows(v)]
    for turn in turns:
        if not measured and draw.random() < 0.12:
            voice = draw.choice(FLITE)
            samples, rate, times = flites[voice].say(turn.request)
            starts = tuple(start for _, start, _ in times)
        else:
            voice = draw.choice(names)
            speed, pitch = draw.randint(120, 210), draw.randint(15, 80)
            # espeak-ng 1.51 crashes where a deep voice's pitch swings below zero
            spread = min(draw.randint(20, 80), 2 * pitch + 20)
            samples, rate, starts = espeak.say(
                turn.request, voice, speed=speed, pitch=pitch, spread=spread
            )
        if len(starts) != len(turn.request.split()):
            starts = ()  # "I'd" as two words, say: no labels by time for this one
        yield Spoken(coded(narrowed(samples, rate)), starts, turn, voice)


def speak_clearly(turns: Iterable[Turn], draw: random.Random, units: Units) -> Iterator[Spoken]:
    """Requests in few voices that sound more like people: Pico's, and nano-audio's own, so that it
    understands itself; as of bigger and smaller heads."""
    picos = {language: Pico(language) for language in LANGUAGES}
    for turn in turns:
        voice = draw.choice((*LANGUAGES, *LANGUAGES, OWN))
        speed, pitch, factor = (
            draw.randint(80, 130),
            draw.randint(60, 150),
            draw.uniform(0.85, 1.17),
        )
        if voice != OWN:
            samples = picos[voice].say(turn.request, speed=speed, pitch=pitch)
        elif set(words_of(turn.request)) <= set(units.codes):
            samples = narrowed(units.sound(turn.request), FINE)
        else:
            continue
        yield Spoken(coded(stretched(samples, factor)), (), turn, voice)


def narrowed(samples: np.ndarray, rate: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(samples).float(), rate, RATE).numpy()


def coded(samples: np.ndarray) -> np.ndarray:
    return (samples.clip(-1, 1) * 32767).astype(np.int16)


def other_sentences(data: Path) -> tuple[list[str], list[str], list[str]]:
    """Short questions and statements of everyday life, none of them the counter's own: to train
    on, for measuring only, and all the rest."""
    import lzma

    own = {way for ways, _ in TALK.values() for way in ways}
    found = []
    for name, key in (("clinc150.jsonl.xz", "text"), ("tatoeba_english.jsonl.xz", "text")):
        with lzma.open(data / "text" / name, "rt", encoding="utf-8") as file:
            for line in file:
                text = str(json.loads(line).get(key, ""))
                plain = "".join(c for c in text.lower() if c.isalpha() or c in " '").strip()
                if 2 <= len(plain.split()) <= 9 and plain not in own:
                    found.append(plain)
    some = random.Random(0).sample(found, min(4000, len(found)))
    held = set(some[1::2]) - set(some[::2])
    return some[::2], [text for text in some if text in held], sorted(set(found) - set(some))


def write(spoken: Iterator[Spoken], folder: Path) -> None:
    """Samples end to end in `samples.i16`, what was said in `turns.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    place = count = 0
    with (folder / "samples.i16").open("wb") as sound, (folder / "turns.jsonl").open("w") as words:
        for one in spoken:
            one.samples.tofile(sound)
            row = {
                "start": place, "length": len(one.samples), "request": one.turn.request,
                "intent": one.turn.intent, "reply": one.turn.reply, "slots": dict(one.turn.slots),
                "starts": [round(s, 3) for s in one.starts], "voice": one.voice,
            }  # fmt: skip
            words.write(json.dumps(row) + "\n")
            place += len(one.samples)
            count += 1
    print(f"{count} requests in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--clearly", type=int, default=4000, help="in few, more human voices")
    parser.add_argument("--others", type=int, default=6000, help="more of what nobody can answer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, held, more = other_sentences(args.data)
    parts = (("spoken", train, args.count), ("spoken-held-out", held, 300))
    for measured, (name, others, count) in enumerate(parts):
        draw = random.Random(args.seed + measured)
        turns = (draw_turn(draw, others, SHARES) for _ in range(count))
        write(speak(turns, draw, bool(measured)), args.run / name)
    draw = random.Random(args.seed + 2)
    turns = (Turn(text, "other", SORRY) for text in draw.sample(more, min(args.others, len(more))))
    write(speak(turns, draw, measured=False), args.run / "spoken-others")
    draw, units = random.Random(args.seed + 3), Units.load(args.run / "units.npz")
    turns = (draw_turn(draw, train, CLEARLY) for _ in range(args.clearly))
    write(speak_clearly(turns, draw, units), args.run / "spoken-clearly")


if __name__ == "__main__":
    main()
