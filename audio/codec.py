"""Codes -> waveform: one protocol for both published decoders. Knows folders and shapes of codes.

A decoder holds weights and nothing else. What it remembers of a stream is a value that goes in and
comes out: it can be kept, copied and gone back to, and frames one by one give the same samples as
all at once, to rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput, CheckpointDamaged

DETOKENIZER = "audio_detokenizer"  # folder inside of an LFM2.5 checkpoint
MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"


class Codec(Protocol):
    """Turns frames of codes into mono sound."""

    rate: int  # Hz
    samples_per_frame: int
    codebooks: int
    codebook_size: int  # codes are 0 … codebook_size - 1; a frame that ends the audio is none

    def start(self) -> Any:
        """What is remembered before the first frame."""

    def decode(self, codes: Tensor, state: Any) -> tuple[Tensor, Any]:
        """codes (codebooks, n) -> the samples (m,) float32 that are certain, and the next state."""

    def finish(self, state: Any) -> Tensor:
        """The samples that were held back, after the last frame."""

    def wave(self, codes: Tensor) -> Tensor:
        """codes (codebooks, n) -> all samples, (n · samples_per_frame,) float32."""


def open_codec(folder: Path, choice: Choice) -> Codec:
    """The decoder that a checkpoint folder holds: LFM2.5's detokenizer, else Mimi.

    Mimi computes in float32 as published, with weights in bf16 unless fp32 is chosen; of the
    detokenizer, the network takes the dtype chosen (in int8 a trained voice stays within -50 dB),
    and its exponential and what follows are float32.
    Raises CheckpointDamaged.
    """
    if (folder / DETOKENIZER).is_dir():
        from audio.detokenizer import open_detokenizer

        return open_detokenizer(folder / DETOKENIZER, choice)
    if (folder / MIMI).is_file():
        from audio.mimi_files import open_mimi

        return open_mimi(folder / MIMI, choice)
    raise CheckpointDamaged(
        f"{folder} has no voice: neither {DETOKENIZER}/ nor {MIMI}; fetch the checkpoint again"
    )


def checked(codes: Tensor, codebooks: int, codebook_size: int) -> Tensor:
    """The same codes, if they are (codebooks, n) in range. Raises BadInput."""
    if codes.dim() != 2 or codes.shape[0] != codebooks or codes.is_floating_point():
        raise BadInput(f"codes {tuple(codes.shape)} were given; ({codebooks}, frames) are decoded")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise BadInput(
            f"a code is {int(codes.min())} or {int(codes.max())}; 0 to {codebook_size - 1} sound "
            "(leave frames out that end the audio)"
        )
    return codes


def wave_of(codec: Codec, codes: Tensor) -> Tensor:
    """All samples of `codes`, by decoding them as one stream."""
    samples, state = codec.decode(codes, codec.start())
    return torch.cat((samples, codec.finish(state)))
