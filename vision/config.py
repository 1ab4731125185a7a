"""What a vision checkpoint is made of, read from its config.json. Knows no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lfm2_mm.config import LARGEST, MOST, BackboneConfig
from lfm2_mm.errors import CheckpointDamaged

MODEL_TYPES = ("lfm2_vl", "lfm2-vl")  # native, and the first snapshots' remote code
TOWER_TYPES = ("siglip2_vision_model", "siglip2")
IMAGE_TOKEN = 396
MAX_LAYERS = 1000


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the SigLIP2 tower. `grid` is the side of its square of learned positions."""

    width: int
    feed_forward: int
    heads: int
    layers: int
    grid: int = 16
    patch: int = 16  # pixels
    channels: int = 3
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = (self.width, self.feed_forward, self.heads, self.layers, self.grid, self.patch)
        for size in (*sizes, self.channels):
            if type(size) is not int or not 1 <= size <= LARGEST or self.patch > MOST:
                raise CheckpointDamaged(f"a size of vision_config is {size!r}: {self}")
        if self.width % self.heads:
            raise CheckpointDamaged(f"{self.heads} heads do not divide a width of {self.width}")
        if self.layers > MAX_LAYERS:
            raise CheckpointDamaged(f"vision_config asks for {self.layers} layers")

    @property
    def patch_values(self) -> int:
        """Numbers of one patch: its pixels row by row, channels last."""
        return self.patch**2 * self.channels

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TowerConfig:
        """Read transformers' Siglip2VisionConfig keys; what is missing has that class's default."""
        kind = raw.get("model_type", TOWER_TYPES[0])
        act = raw.get("hidden_act", "gelu_pytorch_tanh")
        if kind not in TOWER_TYPES or act != "gelu_pytorch_tanh":
            raise CheckpointDamaged(
                f"vision_config is a {kind!r} with {act!r}; known is a {TOWER_TYPES[0]} "
                "with 'gelu_pytorch_tanh'"
            )
        positions = raw.get("num_patches", 256)
        if math.isqrt(positions) ** 2 != positions:
            raise CheckpointDamaged(f"num_patches is {positions}, which is no square of positions")
        return cls(
            width=raw.get("hidden_size", 768),
            feed_forward=raw.get("intermediate_size", 3072),
            heads=raw.get("num_attention_heads", 12),
            layers=raw.get("num_hidden_layers", 12),
            grid=math.isqrt(positions),
            patch=raw.get("patch_size", 16),
            channels=raw.get("num_channels", 3),
            norm_eps=float(raw.get("layer_norm_eps", 1e-6)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "model_type": TOWER_TYPES[0],
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_patches": self.grid**2,
            "patch_size": self.patch,
            "num_channels": self.channels,
            "layer_norm_eps": self.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "attention_dropout": 0.0,
            "vision_use_head": False,
        }


@dataclass(frozen=True)
class VisionConfig:
    """A whole vision checkpoint: tower, projector, backbone."""

    tower: TowerConfig
    backbone: BackboneConfig
    projector_width: int = 2048
    projector_norm: bool = False  # LFM2-VL has one, LFM2.5-VL has none
    projector_bias: bool = True
    downsample: int = 2  # patches a token, along each side
    image_token_id: int = IMAGE_TOKEN

    def __post_init__(self) -> None:
        for size, most in ((self.projector_width, LARGEST), (self.downsample, MOST)):
            if type(size) is not int or not 1 <= size <= most:
                raise CheckpointDamaged(f"a size of the projector is {size!r}")
        if not 0 <= self.image_token_id < self.backbone.vocab_size:
            raise CheckpointDamaged(
                f"image_token_id {self.image_token_id} lies beyond the vocabulary of "
                f"{self.backbone.vocab_size}"
            )

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> VisionConfig:
        """Read transformers' Lfm2VlConfig keys, and those of the first snapshots.

        Raises CheckpointDamaged when it is no vision checkpoint or a value is not supported.
        """
        kind = raw.get("model_type")
        if kind not in MODEL_TYPES:
            raise CheckpointDamaged(
                f"model_type is {kind!r}; a vision checkpoint is {MODEL_TYPES[0]}"
            )
        if not isinstance(raw.get("text_config"), dict):
            raise CheckpointDamaged("config.json lacks 'text_config', the language model's part")
        if raw.get("projector_hidden_act", "gelu") != "gelu":
            raise CheckpointDamaged(
                f"projector_hidden_act is {raw['projector_hidden_act']!r}; only 'gelu' is known"
            )
        try:
            return cls(
                tower=TowerConfig.from_json(raw["vision_config"]),
                backbone=BackboneConfig.from_json(raw),
                projector_width=raw.get("projector_hidden_size", 2560),
                projector_norm=bool(raw.get("projector_use_layernorm", True)),
                projector_bias=bool(raw.get("projector_bias", True)),
                downsample=raw.get("downsample_factor", 2),
                image_token_id=raw.get("image_token_id", raw.get("image_token_index", IMAGE_TOKEN)),
            )
        except KeyError as error:
            raise CheckpointDamaged(f"config.json lacks {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise CheckpointDamaged(
                f"config.json holds what is no size or setting: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The configuration as transformers' native class reads it; `from_json` inverts it."""
        return {
            "architectures": ["Lfm2VlForConditionalGeneration"],
            "model_type": MODEL_TYPES[0],
            "vision_config": self.tower.to_json(),
            "text_config": self.backbone.to_json(),
            "image_token_id": self.image_token_id,
            "projector_hidden_act": "gelu",
            "projector_hidden_size": self.projector_width,
            "projector_use_layernorm": self.projector_norm,
            "projector_bias": self.projector_bias,
            "downsample_factor": self.downsample,
            "tie_word_embeddings": self.backbone.tied,
        }
