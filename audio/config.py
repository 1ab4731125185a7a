"""What a speech checkpoint is made of, read from its config.json. Knows no tensors.

The published keys are those of LFM2-Audio's config.json. A few optional ones, with the published
values as their defaults, let a smaller checkpoint say what the published ones leave unsaid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lfm2_mm.config import BackboneConfig
from lfm2_mm.errors import CheckpointDamaged

CODES = 2048  # of every published codebook; the code after the last one ends the audio
DEPTH_HEADS, DEPTH_KV_HEADS = 32, 8  # of the published depth transformer, whatever its width
FF_MULTIPLE = 256  # the feed-forward's width is rounded up to this

# What the arithmetic of mel.py and encoder.py takes for granted: key -> the only value it may have.
MEL_RULES: dict[str, Any] = {
    "normalize": "per_feature",
    "window": "hann",
    "log": True,
    "frame_splicing": 1,
    "pad_to": 0,
}
ENCODER_RULES: dict[str, Any] = {
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "causal_downsampling": False,
    "self_attention_model": "rel_pos",
    "att_context_size": [-1, -1],
    "untie_biases": True,
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
    "reduction": None,
}


@dataclass(frozen=True)
class MelConfig:
    """The log-mel front end ("preprocessor"); lengths in samples."""

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    n_fft: int = 512
    features: int = 128

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> MelConfig:
        _refuse_other(raw, MEL_RULES, "preprocessor")
        rate = raw["sample_rate"]
        return cls(
            sample_rate=rate,
            window=_whole(raw["window_size"] * rate, "window_size"),
            hop=_whole(raw["window_stride"] * rate, "window_stride"),
            n_fft=raw["n_fft"],
            features=raw["features"],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "sample_rate": self.sample_rate,
            "window_size": self.window / self.sample_rate,
            "window_stride": self.hop / self.sample_rate,
            "features": self.features,
            "n_fft": self.n_fft,
            "dither": 1e-5,
            "pad_value": 0.0,
            **MEL_RULES,
        }


@dataclass(frozen=True)
class EncoderConfig:
    """The FastConformer ("encoder")."""

    features: int = 128
    layers: int = 17
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    kernel: int = 9
    channels: int = 256  # of the striding convolutions
    factor: int = 8  # mel frames that become one position
    max_positions: int = 5000
    scale_input: bool = False

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> EncoderConfig:
        _refuse_other(raw, ENCODER_RULES, "encoder")
        if raw["feat_out"] not in (-1, raw["d_model"]):
            raise CheckpointDamaged(f"encoder.feat_out is {raw['feat_out']}; only -1 is supported")
        return cls(
            features=raw["feat_in"],
            layers=raw["n_layers"],
            width=raw["d_model"],
            heads=raw["n_heads"],
            feed_forward=raw["d_model"] * raw["ff_expansion_factor"],
            kernel=raw["conv_kernel_size"],
            channels=raw["subsampling_conv_channels"],
            factor=raw["subsampling_factor"],
            max_positions=raw["pos_emb_max_len"],
            scale_input=raw["xscaling"],
        )

    def to_json(self) -> dict[str, Any]:
        if self.feed_forward % self.width:
            raise ValueError(f"feed_forward {self.feed_forward} is no multiple of {self.width}")
        return {
            "feat_in": self.features,
            "feat_out": -1,
            "n_layers": self.layers,
            "d_model": self.width,
            "n_heads": self.heads,
            "ff_expansion_factor": self.feed_forward // self.width,
            "conv_kernel_size": self.kernel,
            "subsampling_conv_channels": self.channels,
            "pos_emb_max_len": self.max_positions,
            "xscaling": self.scale_input,
            "reduction_position": None,
            "reduction_factor": 1,
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
            **ENCODER_RULES,
        }


@dataclass(frozen=True)
class DepthConfig:
    """The transformer over the codebooks of one frame ("depthformer")."""

    layers: int = 6
    width: int = 1024
    feed_forward: int = 2816
    tied: bool = True  # each codebook's output matrix is its embedding
    heads: int = DEPTH_HEADS
    kv_heads: int = DEPTH_KV_HEADS
    norm_eps: float = 1e-5
    rope_theta: float = 1e6

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> DepthConfig:
        """`heads`, `kv_heads` and `ff` are ours; the published files leave them out."""
        return cls(
            layers=raw["layers"],
            width=raw["dim"],
            feed_forward=raw.get("ff", depth_feed_forward(raw["dim"])),
            tied=raw["tie"],
            heads=raw.get("heads", DEPTH_HEADS),
            kv_heads=raw.get("kv_heads", DEPTH_KV_HEADS),
        )

    def to_json(self) -> dict[str, Any]:
        own = {
            "ff": (self.feed_forward, depth_feed_forward(self.width)),
            "heads": (self.heads, DEPTH_HEADS),
            "kv_heads": (self.kv_heads, DEPTH_KV_HEADS),
        }
        return {"layers": self.layers, "dim": self.width, "tie": self.tied} | {
            key: value for key, (value, default) in own.items() if value != default
        }

    def blocks(self) -> BackboneConfig:
        """The same layers as a backbone would describe them; it has no vocabulary of its own."""
        return BackboneConfig(
            vocab_size=1,
            hidden_size=self.width,
            layer_types=("full_attention",) * self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            feed_forward=self.feed_forward,
            head_dim=self.width // self.heads,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
        )


@dataclass(frozen=True)
class AudioConfig:
    """A whole speech checkpoint. `codebook_size` counts codes without the one that ends."""

    backbone: BackboneConfig
    mel: MelConfig = field(default_factory=MelConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    codebooks: int = 8
    codebook_size: int = CODES
    n_text: int = 6  # tokens and frames that take turns in interleaved generation
    n_audio: int = 12
    semantic_factor: float = 100.0  # how much more the first codebook counts in training
    weighting: str = "log"  # or "linear"
    text_loss: float = 1.0
    audio_loss: float = 1.0
    text_pad: str | None = None  # a token that fills a text slot and says nothing

    def __post_init__(self) -> None:
        numbers = (self.codebooks, self.codebook_size, self.n_text, self.n_audio, self.depth.layers)
        if min(numbers) < 1:
            raise CheckpointDamaged(f"a size of the speech configuration is below 1: {numbers}")
        if self.weighting not in ("log", "linear"):
            raise CheckpointDamaged(f"codebook_weight is {self.weighting!r}: log or linear")
        if self.mel.features != self.encoder.features:
            raise CheckpointDamaged(
                f"the encoder reads {self.encoder.features} features, "
                f"the preprocessor makes {self.mel.features}"
            )
        if self.depth.width % (2 * self.depth.heads) or self.depth.heads % self.depth.kv_heads:
            raise CheckpointDamaged(
                f"a depthformer of width {self.depth.width} cannot have {self.depth.heads} heads "
                f"over {self.depth.kv_heads} key heads"
            )

    @property
    def end_frame(self) -> tuple[int, ...]:
        """The frame that ends the audio."""
        return (self.codebook_size,) * self.codebooks

    @property
    def codebook_weights(self) -> tuple[float, ...]:
        """How much each codebook counts in the training loss."""
        count = self.codebooks
        if self.weighting == "linear":
            return (self.semantic_factor, *(1.0,) * (count - 1))
        steps = [1 - k / (count - 1) if count > 1 else 1.0 for k in range(count)]
        return tuple(math.exp(step * math.log(self.semantic_factor)) for step in steps)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> AudioConfig:
        """Read a published config.json; keys it does not need are ignored.

        Raises CheckpointDamaged when a needed key is missing or a value is not supported.
        """
        try:
            return cls(
                backbone=BackboneConfig.from_json(raw["lfm"]),
                mel=MelConfig.from_json(raw["preprocessor"]),
                encoder=EncoderConfig.from_json(raw["encoder"]),
                depth=DepthConfig.from_json(raw["depthformer"]),
                codebooks=raw["codebooks"],
                codebook_size=raw.get("codebook_size", CODES),
                n_text=raw["interleaved_n_text"],
                n_audio=raw["interleaved_n_audio"],
                semantic_factor=raw.get("semantic_codebook_factor", 100.0),
                weighting=raw.get("codebook_weight", "log"),
                text_loss=raw.get("text_loss_multiplier", 1.0),
                audio_loss=raw.get("audio_loss_multiplier", 1.0),
                text_pad=raw.get("text_pad"),
            )
        except KeyError as error:
            raise CheckpointDamaged(f"config.json of a speech checkpoint lacks {error}") from error
        except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise CheckpointDamaged(
                f"config.json holds what is no size or setting: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The configuration under the published keys; `from_json` reads it back unchanged."""
        raw: dict[str, Any] = {
            "architectures": ["Lfm2AudioForConditionalGeneration"],
            "codebooks": self.codebooks,
            "tie_audio_embeddings": False,
            "semantic_codebook_factor": self.semantic_factor,
            "codebook_weight": self.weighting,
            "text_loss_multiplier": self.text_loss,
            "audio_loss_multiplier": self.audio_loss,
            "interleaved_n_text": self.n_text,
            "interleaved_n_audio": self.n_audio,
            "preprocessor": self.mel.to_json(),
            "encoder": self.encoder.to_json(),
            "lfm": self.backbone.to_json(),
            "depthformer": self.depth.to_json(),
        }
        own = {"codebook_size": (self.codebook_size, CODES), "text_pad": (self.text_pad, None)}
        return raw | {key: value for key, (value, default) in own.items() if value != default}


def depth_feed_forward(width: int) -> int:
    """Two thirds of four times the width, rounded up."""
    return FF_MULTIPLE * math.ceil(int(2 * 4 * width / 3) / FF_MULTIPLE)


def _whole(value: float, name: str) -> int:
    if value < 1 or abs(value - round(value)) > 1e-6:
        raise CheckpointDamaged(f"preprocessor.{name} is {value} samples, not a whole number")
    return round(value)


def _refuse_other(raw: dict[str, Any], rules: dict[str, Any], part: str) -> None:
    """Settings that would need other arithmetic; a missing one counts as the supported one."""
    for key, value in rules.items():
        if raw.get(key, value) != value:
            raise CheckpointDamaged(
                f"{part}.{key} is {raw[key]!r}; only {value!r} is supported here"
            )
