"""A codec that is heard: a frame sounds as a tone of its first code, without gaps or clicks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ToneCodec:
    rate = 24_000
    samples_per_frame = 1920

    def __init__(self, codebooks: int = 3, codebook_size: int = 40) -> None:
        self.codebooks, self.codebook_size = codebooks, codebook_size

    def start(self) -> float:
        """The state is the phase."""
        return 0.0

    def decode(self, codes: Tensor, state: float) -> tuple[Tensor, float]:
        steps = (300 + 20 * codes[0].double()).repeat_interleave(self.samples_per_frame)
        phases = state + (steps * 2 * math.pi / self.rate).cumsum(0)
        return 0.3 * phases.sin().float(), float(phases[-1]) % (2 * math.pi)

    def finish(self, state: float) -> Tensor:
        return torch.zeros(0)
