"""Measures nano-audio on people, voices and noises it never heard: tables for its card and docs.

    python recipes/measure_audio.py --data DIR --run runs/nano-audio [--write]

An answer is judged by the reply's text, which repeats what was understood; its own speech by
pocketsphinx with a grammar of the replies (Judge), and by reading the codes back to words. Replies
are sampled as `talk` and `speak` do. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nano_audio_clips import RATE, Clip, vocabulary
from nano_audio_heldout import (
    Share,
    held_sets,
    listener,
    most_frequent,
    plain,
    read_codes,
    sentences,
    slots_right,
)
from nano_audio_judge import errors
from nano_audio_language import SORRY, order_reply
from nano_audio_units import Units

import audio
from audio.chat import CONVERSE
from audio.conversation import CONVERSING, SPEAKING, Manner
from audio.generation import Made, Spoken, TextToken
from audio.memory import Memory
from audio.modes import Interleaved, Mode
from audio.speech import Speech
from lfm2_mm.prompt import TextStream
from lfm2_mm.types import Audio

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
CARD = Path(__file__).with_name("nano_audio_card.md")
DOCS = Path(__file__).parents[1] / "docs" / "nano-audio.md"
LIMIT = 500  # tokens and frames
Say = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    text: str
    codes: np.ndarray  # (n, 4)


class Asked:
    """One checkpoint, asked; every answer with the codes it is spoken by."""

    def __init__(self, speech: Speech, seed: int) -> None:
        self.speech, self.seed = speech, seed

    def reply(self, clip: Clip) -> Answer:
        marks, config = self.speech.script.marks, self.speech.model.config
        mode = Interleaved(config.n_text, config.n_audio, marks.text_end)
        return self._answer(CONVERSE, self.speech.hear(Audio(clip.samples, RATE)), mode, CONVERSING)

    def read(self, text: str) -> Answer:
        (_, made), *rest = self.speech._recited([text], replace(SPEAKING, seed=self.seed))
        assert not rest
        return self._gathered(made)

    def written(self, clip: Clip) -> str:
        return self.speech.transcribe(Audio(clip.samples, RATE)).text

    def _answer(self, system: str, part: object, mode: Mode, manner: Manner) -> Answer:
        speech = self.speech
        memory = Memory(speech.model, speech.prompt(system, part))  # type: ignore[arg-type]
        made = speech.generate(memory, mode, Manner(manner.text, manner.sound, LIMIT, self.seed))
        return self._gathered(made)

    def _gathered(self, made: Iterator[Made]) -> Answer:
        stream, text, codes = TextStream(self.speech.tokenizer), "", []
        for item in made:
            if isinstance(item, TextToken) and item.id not in self.speech.script.marks.silent:
                text += stream.push(item.id)
            elif isinstance(item, Spoken) and self.speech.voice.audible(item):
                codes.append(item.codes)
        return Answer((text + stream.flush()).strip(), np.array(codes).reshape(-1, 4))


def hearing(asked: Asked, sets: dict[str, list[Clip]], say: Say) -> tuple[list[str], list[Answer]]:
    """The table of what was understood, and all answers."""
    rows = ["| heard | right | % (95 %) |", "|---|---|---|"]
    answers: list[Answer] = []

    def row(name: str, marks: Sequence[bool]) -> None:
        rows.append(f"| {name} | {Share.of(marks)} |")
        say(rows[-1])

    def replies(name: str) -> list[tuple[Clip, Answer]]:
        found = [(clip, asked.reply(clip)) for clip in sets.get(name, [])]
        answers.extend(answer for _, answer in found)
        return found

    for name, told in (
        ("orders", "orders of people held out"),
        ("synthetic order", "orders of synthetic voices held out"),
    ):
        if not (found := replies(name)):
            continue
        by_clip = [slots_right(a.text, c.slots or {}) for c, a in found]
        row(f"{told}: slots", [mark for marks in by_clip for mark in marks])
        row(f"{told}: whole", [a.text == order_reply(c.slots or {}) for c, a in found])
        if name == "orders":
            blind = most_frequent(sets[name])
            marks = [blind.get(k) == v for c, _ in found for k, v in (c.slots or {}).items()]
            row("the same slots, always the most frequent value", marks)
    for name, told in (
        ("digits", "one digit of the speaker held out"),
        ("digits in a row", "1 to 5 of that speaker's digits in a row, all of them"),
        ("commands", "one digit of speakers of Speech Commands held out"),
        ("synthetic digits", "numbers of synthetic voices held out, all digits"),
        ("synthetic talk", "small talk of synthetic voices held out"),
    ):
        if found := replies(name):
            row(told, [answer.text == clip.reply for clip, answer in found])
    for name in ("questions", "reading", "noise"):
        if found := replies(name):
            row(f'"sorry" to {name}', [answer.text == SORRY for _, answer in found])
    return rows, answers


def transcripts(asked: Asked, sets: dict[str, list[Clip]], say: Say) -> list[str]:
    """Words written down right, of synthetic voices held out."""
    known, rows = set(vocabulary()), []
    for name in ("synthetic order", "synthetic digits", "synthetic talk"):
        wrong = total = 0
        for clip in sets.get(name, []):
            said = [w for w in clip.words or () if w in known]
            wrong += min(len(said), errors(said, asked.written(clip).split()))
            total += len(said)
        if total:
            told = f"`transcribe`, {name} in voices held out: words"
            rows.append(f"| {told} | {Share(total - wrong, total)} |")
            say(rows[-1])
    return rows


def speaking(
    asked: Asked, units: Units, answers: Sequence[Answer], count: int, say: Say
) -> list[str]:
    """Its own speech: texts read aloud, and the replies it gave to the recordings."""
    rows = ["| spoken | right | % (95 %) |", "|---|---|---|"]
    judge, codec = listener(), asked.speech.codec
    texts = sentences(count, asked.seed)
    read = [(text, asked.read(text)) for text in texts]
    told = [(a.text, a) for a in answers[:: max(1, len(answers) // count)] if len(a.codes)]

    def heard(samples: np.ndarray, rate: int, text: str) -> bool:
        return errors(plain(text), judge.hear(samples, rate)) == 0

    def row(name: str, marks: Sequence[bool]) -> None:
        rows.append(f"| {name} | {Share.of(marks)} |")
        say(rows[-1])

    for name, pairs in (("read aloud", read), ("replies", told)):
        waves = [codec.wave(torch.from_numpy(a.codes.T.copy())).numpy() for _, a in pairs]
        row(
            f"{name}: sentences by pocketsphinx",
            [heard(w, codec.rate, text) for w, (text, _) in zip(waves, pairs, strict=True)],
        )
        row(
            f"{name}: sentences by their codes",
            [[w.lower() for w in read_codes(units, a.codes)] == plain(text) for text, a in pairs],
        )
    row(
        "the frames it was to learn, with an ideal decoder: sentences by pocketsphinx",
        [heard(units.sound(text), 24_000, text) for text in texts],
    )
    return rows


def replace_measured(path: Path, lines: Sequence[str]) -> None:
    """Put the lines between the marks of a file."""
    text = path.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def measure(args: argparse.Namespace, say: Say) -> None:
    model = args.model or args.run / "checkpoint"
    asked = Asked(audio.open(model, dtype="fp32", device="cpu"), args.seed)
    sets = held_sets(args.data, args.run, args.commands)
    sets = {n: c if n in ("orders", "reading") else c[: args.count] for n, c in sets.items()}
    rows, answers = hearing(asked, sets, say)
    rows += transcripts(asked, sets, say)
    spoken = speaking(asked, Units.load(args.run / "units.npz"), answers, args.count, say)
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    note = f"Measured with the weights whose sha256 is `{digest}`."
    if args.write:
        for path in (CARD, model / "MODEL_CARD.md", DOCS):
            replace_measured(path, [*rows, "", *spoken, "", note])


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = words.add_argument
    add("--data", type=Path, required=True, help="folder that holds speech/ and text/")
    add("--run", type=Path, default=Path("runs/nano-audio"), help="folder of the training")
    add("--commands", type=Path, help="folder of Speech Commands, for one more row")
    add("--model", type=Path, help="folder of a checkpoint (default: the run's)")
    add("--count", type=int, default=150, help="clips of a kind, but all orders; sentences")
    add("--seed", type=int, default=0)
    add("--write", action="store_true", help="into the cards and docs/nano-audio.md")
    return words


def main() -> None:
    measure(parser().parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
