"""The shape of nano-audio: sizes that keep all of it, voice and tokenizer included, below 18 MB."""

from __future__ import annotations

from typing import cast

import torch
from nano_audio_units import BOOKS, CODES

from audio.config import AudioConfig, DepthConfig, EncoderConfig, MelConfig
from audio.depth import CodebookHead
from audio.model import SpeechModel
from lfm2_mm.config import BackboneConfig

POSITIONS = 1024  # of a conversation: four or five turns
SHARPER = 6.0


def settings(vocabulary_size: int) -> AudioConfig:
    """The published layout, small; one token and two frames take turns."""
    backbone = BackboneConfig(
        vocab_size=vocabulary_size, hidden_size=192, heads=6, kv_heads=2, feed_forward=512,
        head_dim=32, layer_types=("conv", "full_attention") * 3, norm_eps=1e-5, rope_theta=1e6,
        max_positions=POSITIONS,
    )  # fmt: skip
    return AudioConfig(
        backbone,
        mel=MelConfig(features=80),
        encoder=EncoderConfig(
            features=80, layers=4, width=144, heads=4, feed_forward=576, channels=32,
            max_positions=375,  # 30 s; it learned from clips of a few
        ),
        depth=DepthConfig(layers=2, width=128, feed_forward=384, heads=4, kv_heads=2),
        codebooks=BOOKS, codebook_size=CODES, n_text=1, n_audio=2, text_pad="<|text_pad|>",
    )  # fmt: skip


@torch.no_grad()
def sharpen(model: SpeechModel, factor: float) -> None:
    """Logits times `factor`: with SHARPER what is sampled at the published temperatures is nearly
    the likeliest.

    The last norms carry the factor; what else reads the backbone's norm takes it out again.
    """
    model.backbone.norm.weight.mul_(factor)
    model.depth.project.weight.div_(factor)
    for head in cast("list[CodebookHead]", list(model.depth.heads)):
        head.norm.weight.mul_(factor)
