"""When does a turn end, on recordings with pauses? Plain silence beside what was said.

    python -m benchmarks.live_turns --data DIR [--model nano-audio] [--clips 200]

DIR/speech/barista holds spoken orders (docs/benchmarks.md says from where). Each is heard window by
window with a second and a half of faint noise behind it. The clock is the number of samples; what a
transcript costs is its processor time, laid on that clock, so a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import audio
from audio.endings import SILENCE, verdict
from audio.session import PRE_ROLL_S
from audio.speech import Speech
from audio.turns import SpeechEnd, SpeechPause, SpeechStart
from audio.vad import WINDOW, Hysteresis, SpeechDetector, open_judge
from lfm2_mm.types import Audio

RATE = 16_000
TAIL_S = 1.5
PAUSE_S = 0.16
Patience = Callable[[Audio], float | None]


@dataclass
class Course:
    """How one recording was heard."""

    ends: int = 0
    reaction_s: float = 0.0  # from the last sound of speech to the end of the turn
    model_s: float = 0.0  # of that, waiting for a transcript
    pauses: int = 0


def end_of_speech(samples: np.ndarray) -> int:
    """After the last 10 ms that are not far below the loud ones."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    level = np.sqrt(np.mean(frames**2, 1))
    return int(np.flatnonzero(level > 0.05 * np.quantile(level, 0.95))[-1] + 1) * 160


def hear(samples: np.ndarray, detector: SpeechDetector, patience: Patience | None) -> Course:
    course, began, ready, wanted = Course(), 0, 0, None
    noise = 3e-4 * np.random.RandomState(0).standard_normal(int(TAIL_S * RATE))
    heard = np.concatenate((samples, noise.astype(np.float32)))
    for at in range(0, len(heard) - WINDOW + 1, WINDOW):
        now = at + WINDOW
        if wanted is not None and now >= ready:
            detector.silence_s, wanted = wanted, None
        for found in detector.push(heard[at:now]):
            if isinstance(found, SpeechStart):
                began = found.at
            elif isinstance(found, SpeechPause):
                course.pauses += 1
                if patience is not None:
                    start = time.thread_time()
                    first = max(0, began - int(PRE_ROLL_S * RATE))
                    wanted = patience(Audio(heard[first : found.at], RATE))
                    course.model_s = time.thread_time() - start
                    ready = now + int(course.model_s * RATE)
            elif isinstance(found, SpeechEnd):
                course.ends += 1
                course.reaction_s = (now - end_of_speech(samples)) / RATE
                wanted = None
            else:  # speech went on
                wanted = None
    return course


def by_words(speech: Speech) -> Patience:
    def patience(said: Audio) -> float:
        return SILENCE["medium"][verdict(speech.transcribe(said).text)]

    return patience


def report(name: str, courses: Sequence[Course]) -> str:
    reactions = np.array([c.reaction_s for c in courses if c.ends])
    false = sum(max(0, c.ends - 1) for c in courses)
    missed = sum(not c.ends for c in courses)
    low, middle, high = np.quantile(reactions, (0.1, 0.5, 0.9)) * 1000
    model = np.median([c.model_s for c in courses]) * 1000
    return (
        f"| {name} | {middle:.0f} ({low:.0f}-{high:.0f}) | {false} | {missed} | "
        f"{sum(c.pauses for c in courses)} | {model:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano-audio")
    parser.add_argument("--clusters", help="only these speakers' clusters, with commas between")
    parser.add_argument("--clips", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.data / "speech/barista"
    rows = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    if args.clusters:
        wanted = {int(number) for number in args.clusters.split(",")}
        rows = [row for row in rows if row["speaker_cluster"] in wanted]
    clips = [Audio.open(folder / row["file"]).samples for row in rows[: args.clips]]
    judge, why = open_judge()
    speech = audio.open(args.model, device="cpu")
    print(f"{len(clips)} recordings, {sum(map(len, clips)) / RATE / 60:.1f} min; {why}")
    print("| end of turn | reaction, ms (p10-p90) | false ends | no end | pauses | model, ms |")
    print("|---|---|---|---|---|---|")
    plain = {f"{ms} ms of silence": ms / 1000 for ms in (200, 300, 500, 700)}
    for name, silence in plain.items():
        rule = Hysteresis(silence_s=silence, pause_s=PAUSE_S)
        print(report(name, [hear(c, SpeechDetector(judge, rule), None) for c in clips]), flush=True)
    rule = Hysteresis(pause_s=PAUSE_S)
    patience = by_words(speech)
    words = [hear(c, SpeechDetector(judge, rule), patience) for c in clips]
    print(report("by what was said", words))


if __name__ == "__main__":
    main()
