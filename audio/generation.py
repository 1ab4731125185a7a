"""The loop that answers: hidden state -> token or frame -> history. Knows no text, no sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from audio.chat import Marks
from audio.depth import Choose
from audio.history import Frame
from audio.memory import Memory
from audio.model import SpeechModel
from audio.modes import Mode
from lfm2_mm.sampling import pick
from lfm2_mm.types import Sampling


@dataclass(frozen=True)
class TextToken:
    id: int


@dataclass(frozen=True)
class Spoken:
    """A frame as it stands in the history; `ended` marks the one that ends the audio."""

    codes: Frame
    ended: bool


@dataclass(frozen=True)
class Ended:
    reason: Literal["stop", "length"]


Made = TextToken | Spoken | Ended


def generate(
    memory: Memory, mode: Mode, marks: Marks, text: Choose, code: Choose, limit: int
) -> Iterator[Made]:
    """Make at most `limit` tokens and frames, each in the history before it is yielded.

    The iterator may be closed at any time: what was yielded is what is remembered.
    """
    end = memory.model.config.end_frame
    for _ in range(limit):
        hidden = memory.hidden()
        if mode.speaking:
            codes = memory.model.depth.frame(hidden, code)
            ended = codes[0] == end[0]
            memory.history.add_spoken(end if ended else codes)
            mode.after_frame(ended)
            yield Spoken(end if ended else codes, ended)
            continue
        token = text(text_logits(memory.model, hidden))
        stops = token == marks.turn_end
        if not stops or mode.keeps_end:
            memory.history.add_text([token])
            mode.after_text(token)
            yield TextToken(token)
        if stops:
            yield Ended("stop")
            return
    yield Ended("length")


@torch.inference_mode()
def text_logits(model: SpeechModel, hidden: Tensor) -> Tensor:
    """(vocab,), after the hidden state of one position."""
    return model.logits(hidden)


class Recital:
    """Logits -> id, for words that are given: at each turn of the text the token that says nothing,
    where that is likelier than all others together, or the next word. A single word's chance tells
    little: the model may expect another. For checkpoints that fill text slots (`text_pad`)."""

    def __init__(self, words: Sequence[int], marks: Marks) -> None:
        """Raises ValueError where the checkpoint has no such token."""
        if marks.pad is None:
            raise ValueError("without a token that fills text slots words cannot be timed")
        self.pad, self.left = marks.pad, [*words, marks.text_end, marks.turn_end]
        self.begun = False

    def __call__(self, logits: Tensor) -> int:
        silence = bool(logits.float().softmax(-1)[self.pad] > 0.5)
        waits = silence and self.begun and len(self.left) > 1
        self.begun = True
        return self.pad if waits else self.left.pop(0)


class Chooser:
    """Logits -> id, as the published samplers choose: greedy, or top-k with temperature."""

    def __init__(
        self,
        sampling: Sampling,
        generator: torch.Generator | None,
        *,
        size: int,
        seen: Sequence[int] = (),
    ) -> None:
        """`size` ids can be chosen; `seen` are those a repetition penalty counts at first."""
        if sampling.top_k == 1:  # the largest, and the first of equal ones
            sampling = replace(sampling, temperature=0.0)
        self.sampling, self.generator, self.size = sampling, generator, size
        self.seen = list(seen)

    def __call__(self, logits: Tensor) -> int:
        chosen = pick(logits[: self.size], self.sampling, self.seen, self.generator)
        if self.sampling.repetition_penalty != 1.0:
            self.seen.append(chosen)
        return chosen
