"""What an LFM2 backbone is made of, read from a checkpoint's config.json. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lfm2_mm.errors import CheckpointDamaged

# Beyond any checkpoint, and small enough that its tensors can be named before they are missed.
LARGEST, MOST = 1 << 24, 1 << 12  # of a size; of layers, and of experts in one
LAYER_TYPES = ("conv", "full_attention")


@dataclass(frozen=True)
class Experts:
    """The mixture in the feed-forward of every layer after the first `dense_layers`."""

    count: int
    active: int
    width: int
    dense_layers: int
    use_bias: bool = True
    normalise: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise CheckpointDamaged(f"{self.active} active experts of {self.count} cannot be")
        if not 1 <= self.width <= LARGEST or self.count > MOST:
            raise CheckpointDamaged(
                f"{self.count} experts of moe_intermediate_size {self.width} cannot be"
            )


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of a backbone. `feed_forward` is the real width, after the rule of `_feed_forward`."""

    vocab_size: int
    hidden_size: int
    layer_types: tuple[str, ...]
    heads: int
    kv_heads: int
    feed_forward: int
    head_dim: int = 64
    kernel: int = 3
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_positions: int = 128_000
    tied: bool = True
    conv_bias: bool = False
    experts: Experts | None = None
    bos_token_id: int = 1
    eos_token_id: int = 7
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown or not self.layer_types:
            raise CheckpointDamaged(
                f"layer_types holds {unknown or 'nothing'}; known are {', '.join(LAYER_TYPES)}"
            )
        sizes = (self.vocab_size, self.hidden_size, self.heads, self.kv_heads, self.feed_forward)
        for size in (*sizes, self.head_dim, self.kernel, self.max_positions):
            if type(size) is not int or not 1 <= size <= LARGEST:
                raise CheckpointDamaged(
                    f"config.json says {size!r} for a size: it is below 1, beyond {LARGEST:,}, or "
                    "no whole number"
                )
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise CheckpointDamaged(
                f"{self.heads} heads of {self.head_dim} do not share {self.kv_heads} key heads"
            )

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    def is_dense(self, layer: int) -> bool:
        return self.experts is None or layer < self.experts.dense_layers

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> BackboneConfig:
        """Read transformers' Lfm2Config or Lfm2MoeConfig keys, in their old and new spellings.

        Of a vision checkpoint, the part that reads text. Raises CheckpointDamaged when a needed key
        is missing or a value is not supported.
        """
        raw = _language_part(raw)
        kind = raw.get("model_type", "lfm2")
        if kind not in ("lfm2", "lfm2_moe"):
            raise CheckpointDamaged(f"model_type is {kind!r}; a backbone is lfm2 or lfm2_moe")
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                layer_types=_layer_types(raw),
                heads=raw["num_attention_heads"],
                kv_heads=raw["num_key_value_heads"],
                feed_forward=_feed_forward(raw),
                head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
                kernel=raw.get("conv_L_cache", 3),
                norm_eps=raw.get("norm_eps", 1e-5),
                rope_theta=_rope_theta(raw),
                max_positions=raw.get("max_position_embeddings", 128_000),
                tied=raw.get("tie_embedding", raw.get("tie_word_embeddings", True)),
                conv_bias=raw.get("conv_bias", False),
                experts=_experts(raw) if kind == "lfm2_moe" else None,
                bos_token_id=_first(raw.get("bos_token_id"), 1),
                eos_token_id=_first(raw.get("eos_token_id"), 7),
                pad_token_id=_first(raw.get("pad_token_id"), 0),
            )
        except KeyError as error:
            raise CheckpointDamaged(f"config.json lacks {error}") from error
        except (TypeError, AttributeError, ValueError, ArithmeticError, IndexError) as error:
            raise CheckpointDamaged(
                f"config.json holds what is no size or setting: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The configuration under transformers' keys; `from_json` reads it back unchanged."""
        raw: dict[str, Any] = {
            "model_type": "lfm2_moe" if self.experts else "lfm2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "layer_types": list(self.layer_types),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.feed_forward,
            "conv_L_cache": self.kernel,
            "conv_bias": self.conv_bias,
            "norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }
        if self.head_dim * self.heads != self.hidden_size:
            raw["head_dim"] = self.head_dim
        if self.experts is None:
            return raw | {"block_auto_adjust_ff_dim": False}
        return raw | {
            "num_experts": self.experts.count,
            "num_experts_per_tok": self.experts.active,
            "moe_intermediate_size": self.experts.width,
            "num_dense_layers": self.experts.dense_layers,
            "use_expert_bias": self.experts.use_bias,
            "norm_topk_prob": self.experts.normalise,
            "routed_scaling_factor": self.experts.scale,
        }


def _language_part(raw: dict[str, Any]) -> dict[str, Any]:
    """`text_config` of a vision checkpoint, which keeps whether the head is tied beside it."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        return raw
    return text | {k: raw[k] for k in ("tie_embedding", "tie_word_embeddings") if k in raw}


def _first(value: Any, default: int) -> int:
    """An id; the first of a list of ids; the default where the file says null."""
    if isinstance(value, list):
        return value[0]
    return default if value is None else value


def _layer_types(raw: dict[str, Any]) -> tuple[str, ...]:
    if raw.get("layer_types"):
        return tuple(raw["layer_types"])
    attention = raw.get("full_attn_idxs")
    layers = range(raw["num_hidden_layers"])
    if len(layers) > MOST:
        raise CheckpointDamaged(f"num_hidden_layers is {len(layers):,}, beyond {MOST:,}")
    if attention is None:
        return ("full_attention",) * len(layers)
    return tuple("full_attention" if i in attention else "conv" for i in layers)


def _rope_theta(raw: dict[str, Any]) -> float:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointDamaged(f"rope_type {rope['rope_type']!r} is not supported, only 'default'")
    return float(rope.get("rope_theta") or raw.get("rope_theta") or 1e6)


def _feed_forward(raw: dict[str, Any]) -> int:
    """The width of the dense feed-forward: `intermediate_size` is not always it.

    Lfm2: two thirds of block_ff_dim, times a multiplier, rounded up (transformers,
    models/lfm2/modeling_lfm2.py, Lfm2MLP). Lfm2Moe takes intermediate_size as it is.
    """
    if raw.get("model_type") == "lfm2_moe":
        return raw["intermediate_size"]
    width = raw.get("block_ff_dim") or raw["intermediate_size"]
    if not raw.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    factor = raw.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    width = int(factor * width)
    multiple = raw.get("block_multiple_of", 256)
    return multiple * ((width + multiple - 1) // multiple)


def _experts(raw: dict[str, Any]) -> Experts:
    return Experts(
        count=raw["num_experts"],
        active=raw["num_experts_per_tok"],
        width=raw["moe_intermediate_size"],
        dense_layers=raw.get("num_dense_layers", 2),
        use_bias=raw.get("use_expert_bias", True),
        normalise=raw.get("norm_topk_prob", True),
        scale=raw.get("routed_scaling_factor", 1.0),
    )
