"""Shapes of the published speech checkpoints, and random weights to measure speed without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from audio.codec import Codec
from audio.config import AudioConfig
from audio.depth import DepthTransformer
from audio.detokenizer import Detokenizer, DetokenizerConfig
from audio.encoder import AudioEncoder, load_encoder, published_encoder
from audio.loading import FRAMES, load_mouth, published_depth
from audio.mimi import MimiConfig, MimiDecoder
from audio.mimi_compiled import CompiledMimi, compilable
from audio.model import SpeechModel
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput
from lfm2_mm.loading import build
from lfm2_mm.shapes import SHAPES as BACKBONES
from lfm2_mm.shapes import random_backbone, random_tensors

WHOLE = AudioConfig(backbone=BACKBONES["LFM2-1.2B"])
# Alike but for what turns codes into sound: the 2.5 has a detokenizer, the older one Mimi.
SHAPES = {"LFM2.5-Audio-1.5B": WHOLE, "LFM2-Audio-1.5B": WHOLE}
VOICES = {"LFM2.5-Audio-1.5B": "detokenizer", "LFM2-Audio-1.5B": "Mimi"}
KINDS = ("conv", "conv", *("full_attention", "conv") * 3)
DETOKENIZER = DetokenizerConfig(BackboneConfig(1, 512, KINDS, 16, 8, 2304, head_dim=32))


def find_shape(name: str) -> tuple[AudioConfig, str]:
    """The shape of a published checkpoint, in any case of letters, and the kind of its voice."""
    for known, config in SHAPES.items():
        if known.lower() == name.strip().lower():
            return config, VOICES[known]
    raise BadInput(f"no shape {name!r}; known are {', '.join(SHAPES)}")


def random_speech(config: AudioConfig, choice: Choice, seed: int = 0) -> SpeechModel:
    """A speech model of this shape with random weights, made as a checkpoint is loaded."""
    torch.manual_seed(seed)
    backbone = random_backbone(config.backbone, choice, seed)
    ears = load_encoder(config, published_encoder(AudioEncoder(config)).items(), choice)
    frames, depth = load_mouth(config, _mouth(config), choice)
    return SpeechModel(config, backbone, ears, frames, depth).eval().requires_grad_(False)


def _mouth(config: AudioConfig) -> Iterator[tuple[str, Tensor]]:
    """(published key, tensor) pairs: norms are ones, biases zeros, matrices keep sizes."""
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in published_depth(DepthTransformer(config)).items()}
    rows = config.codebooks * (config.codebook_size + 1)
    shapes[FRAMES] = torch.Size((rows, config.backbone.hidden_size))
    for key, shape in shapes.items():
        if len(shape) == 1:
            yield key, torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
        else:
            yield key, torch.randn(shape, dtype=torch.bfloat16).mul_(shape[-1] ** -0.5)


def random_codec(kind: str, choice: Choice) -> Codec:
    """A voice of the published shape with random weights: "detokenizer" or "Mimi"."""
    return random_detokenizer(DETOKENIZER, choice) if kind == "detokenizer" else _mimi(choice)


def random_detokenizer(config: DetokenizerConfig, choice: Choice) -> Detokenizer:
    hidden = config.backbone.hidden_size
    tensors = {
        "emb.emb.weight": 0.02 * torch.randn(config.codebooks * config.codebook_size, hidden),
        "lin.weight": 0.02 * torch.randn(2 * config.bins, hidden),
        "lin.bias": torch.zeros(2 * config.bins),
        "istft.window": torch.hann_window(config.size),
    }
    shape = config.backbone
    network = build(shape, random_tensors(shape), choice.for_many_rows(), head=False)
    return Detokenizer(config, network, tensors)


def random_mimi(config: MimiConfig) -> MimiDecoder:
    """Every product keeps the size of what it reads; norms are near one, biases small."""
    decoder = MimiDecoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        else:
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    return decoder


def _mimi(choice: Choice) -> Codec:
    plain = random_mimi(MimiConfig())
    if not compilable(plain.config):
        return plain
    half = choice.weights != "fp32"
    return CompiledMimi(plain.config, dict(plain.state_dict()), half=half)
