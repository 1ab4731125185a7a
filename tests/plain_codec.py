"""A codec a child can check: a frame sounds as its first code, ten samples long."""

from __future__ import annotations

import torch
from torch import Tensor

HELD = 3  # samples that are certain only when the next frame is there


class PlainCodec:
    rate = 125
    samples_per_frame = 10

    def __init__(self, codebooks: int = 3, codebook_size: int = 40) -> None:
        self.codebooks, self.codebook_size = codebooks, codebook_size

    def start(self) -> Tensor:
        return torch.zeros(0)

    def decode(self, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """codes (codebooks, n) -> samples that are certain, and those held back."""
        assert codes.shape[0] == self.codebooks and int(codes.min()) >= 0
        assert int(codes.max()) < self.codebook_size, "a frame that means no sound came through"
        samples = torch.cat((state, codes[0].float().repeat_interleave(self.samples_per_frame)))
        return samples[:-HELD], samples[-HELD:]

    def finish(self, state: Tensor) -> Tensor:
        return state

    def wave(self, codes: Tensor) -> Tensor:
        return codes[0].float().repeat_interleave(self.samples_per_frame)
