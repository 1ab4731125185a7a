"""Turns of a conversation -> positions of a history, cut into tokens as the reference cuts them.

Every string is tokenised by itself, so the newline after a role is a token of its own. Knows the
tokenizer, no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from audio.config import AudioConfig
from audio.history import History
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.prompt import ChatTokenizer

Role = Literal["system", "user", "assistant"]

CONVERSE = "Respond with interleaved text and audio."
TRANSCRIBE = "Perform ASR."
SPEAK = "Perform TTS."


@dataclass(frozen=True)
class Marks:
    """Ids of the tokens that steer generation."""

    start: int
    turn_end: int
    audio_start: int
    text_end: int
    pad: int | None  # fills a text slot; only where the configuration names one

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, config: AudioConfig) -> Marks:
        """Raises CheckpointDamaged when the vocabulary lacks one."""
        pad = config.text_pad
        return cls(
            one_id(tokenizer, "<|startoftext|>"),
            one_id(tokenizer, "<|im_end|>"),
            one_id(tokenizer, "<|audio_start|>"),
            one_id(tokenizer, "<|text_end|>"),
            None if pad is None else one_id(tokenizer, pad),
        )

    @property
    def silent(self) -> frozenset[int]:
        """Ids that are never shown."""
        ids = {self.start, self.turn_end, self.audio_start, self.text_end, self.pad}
        return frozenset(i for i in ids if i is not None)


class Script:
    """Writes turns into a history."""

    def __init__(self, tokenizer: ChatTokenizer, config: AudioConfig) -> None:
        self.tokenizer = tokenizer
        self.marks = Marks.of(tokenizer, config)
        self.factor = config.encoder.factor

    def begin(self) -> History:
        """A conversation in which nothing was said."""
        history = History(self.factor)
        history.add_text([self.marks.start])
        return history

    def open_turn(self, history: History, role: Role) -> None:
        history.add_text(self.tokenizer.encode(f"<|im_start|>{role}\n", special=True))

    def close_turn(self, history: History) -> None:
        history.add_text(self.tokenizer.encode("<|im_end|>\n", special=True))

    def turn(self, history: History, role: Role, *parts: str | Tensor) -> None:
        """A whole turn of texts and recordings (mel). Text that spells a special token is text,
        but in a system turn, which is the operator's own."""
        self.open_turn(history, role)
        for part in parts:
            if isinstance(part, str):
                history.add_text(self.tokenizer.encode(part, special=role == "system"))
            else:
                history.add_heard(part)
        self.close_turn(history)


def one_id(tokenizer: ChatTokenizer, token: str) -> int:
    """The id of a token that is looked up by its name. Raises CheckpointDamaged."""
    ids = tokenizer.encode(token, special=True)
    if len(ids) != 1:
        raise CheckpointDamaged(f"the checkpoint's tokenizer has no token {token!r}")
    return ids[0]
