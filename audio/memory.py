"""A history and the backbone's state behind it, kept together. Knows the model, no text.

What is new in the history is fed when a hidden state is asked for, so a second turn costs its own
positions only; cut back, both are as if they had never gone further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from audio.assembly import assemble
from audio.history import History
from audio.model import SpeechModel

PREFILL = 512  # positions a pass: bounds memory


class Memory:
    """`history` may be added to freely; `cut` goes through here."""

    def __init__(self, model: SpeechModel, history: History) -> None:
        self.model, self.history = model, history
        self._state = model.backbone.start()
        self.computed = 0  # positions fed since the start, repeated ones included

    @property
    def fed(self) -> int:
        """Positions the state has seen."""
        return self._state.length

    @property
    def bytes(self) -> int:
        """Memory held by the state."""
        return self._state.bytes

    @torch.inference_mode()
    def hidden(self) -> Tensor:
        """The hidden state (hidden_size,) after the last position, all positions fed."""
        if not len(self.history):
            raise ValueError("nothing was said yet")
        # The last position again where all were fed: hidden states are not kept. A recording
        # whose feeding was broken off is fed whole again.
        start = self.history.boundary(min(self.fed, len(self.history) - 1))
        self._state = self._state.cut(start)
        embeds = assemble(self.model, self.history, start)
        hidden = embeds
        for begin in range(0, embeds.shape[1], PREFILL):
            piece = embeds[:, begin : begin + PREFILL]
            hidden, self._state = self.model.backbone.step(piece, self._state)
            self.computed += piece.shape[1]
        return hidden[0, -1]

    def cut(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.history.cut(length)
        self._state = self._state.cut(min(length, self.fed))

    def drop(self, history: History) -> None:
        """Go on from another history: nothing of the state is kept."""
        self.history = history
        self._state = self.model.backbone.start()
