"""The conversations of speech.json: what is said, in which mode, to which tiny checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import tiny_audio


@dataclass(frozen=True)
class Clip:
    seconds: float
    rate: int
    seed: int

    def samples(self) -> np.ndarray:
        return tiny_audio.recording(self.seconds, self.rate, self.seed)


@dataclass(frozen=True)
class Turn:
    parts: tuple[str | Clip, ...]
    limit: int = 40


@dataclass(frozen=True)
class Case:
    name: str
    mode: str
    system: str
    turns: tuple[Turn, ...]
    checkpoint: dict[str, Any]
    n_audio: int = 12


def checkpoint(seed: int, start: float, text_end: float, turn_end: float, end: float) -> Any:
    """Loudness of the rows that steer, found by search: with these, every event happens."""
    loud = {
        tiny_audio.AUDIO_START: start,
        tiny_audio.TEXT_END: text_end,
        tiny_audio.IM_END: turn_end,
    }
    return {"seed": seed, "loud": loud, "loud_end": end}


CHAT = "Respond with interleaved text and audio."
CASES = (
    Case(
        "transcribe: text and its end",
        "sequential",
        "Perform ASR.",
        (Turn((Clip(1.3, 24_000, 1),)),),
        checkpoint(923, 1.44, 0.94, 2.0, 1.01),
    ),
    Case(
        "speak: audio, text, audio, text",
        "sequential",
        "Perform TTS. Use the US male voice.",
        (Turn(("The quick brown fox.",)),),
        checkpoint(741, 2.36, 1.11, 1.47, 1.87),
    ),
    Case(
        "converse: both ends of text and audio in every order",
        "interleaved",
        CHAT,
        (Turn((Clip(0.9, 16_000, 2),)), Turn(("How do I stop?",)), Turn((Clip(0.31, 44_100, 3),))),
        checkpoint(728, 1.75, 2.54, 1.76, 2.09),
    ),
    Case(
        "converse: the audio ends early",
        "interleaved",
        CHAT,
        (Turn((Clip(0.9, 16_000, 2),)),),
        checkpoint(413, 1.6, 1.19, 1.83, 1.84),
    ),
    Case(
        "converse: nine frames a run, texts and recordings mixed",
        "interleaved",
        CHAT,
        (Turn(("Why?", Clip(0.5, 8_000, 4), "And:", Clip(0.77, 16_000, 5))), Turn(("And?",))),
        checkpoint(517, 1.57, 2.35, 1.72, 1.89),
        n_audio=9,
    ),
)
