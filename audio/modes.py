"""What comes next, a text token or a frame: the two published orders. Pure; knows only ids.

A generator asks `speaking`, makes the one or the other, and tells it by `after_text` or
`after_frame` (report, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Mode(Protocol):
    speaking: bool  # whether a frame comes next
    keeps_end: bool  # whether the token that ends the turn belongs to the reply

    def after_text(self, token: int) -> None: ...
    def after_frame(self, ended: bool) -> None: ...


@dataclass
class Sequential:
    """Transcribing and reading aloud: text, frames from <|audio_start|> to their end, text."""

    audio_start: int
    speaking: bool = False
    keeps_end: bool = True

    def after_text(self, token: int) -> None:
        self.speaking = token == self.audio_start

    def after_frame(self, ended: bool) -> None:
        self.speaking = not ended


@dataclass
class Interleaved:
    """Conversing: n_text tokens, n_audio frames in turn, and after <|text_end|> frames only.

    `left` counts down at every step. When the audio ends before the text does, it runs on where it
    was, as in the reference: the next run of text is then not n_text long.
    """

    n_text: int
    n_audio: int
    text_end: int
    speaking: bool = False
    keeps_end: bool = False
    text_done: bool = False

    def __post_init__(self) -> None:
        self.left = self.n_text

    def after_text(self, token: int) -> None:
        self.left -= 1
        self.text_done |= token == self.text_end
        if self.left == 0 or self.text_done:
            self.speaking, self.left = True, self.n_audio

    def after_frame(self, ended: bool) -> None:
        self.left -= 1
        if self.left == 0 and not self.text_done:
            self.speaking, self.left = False, self.n_text
        if ended:
            self.speaking = False
