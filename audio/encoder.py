"""Log-mel frames -> embeddings for the backbone: the continuous path in. Knows the published names.

The conformer and a small adapter after it. Every clip is heard alone and as a whole: the published
conformer sees its full context, so there is no streaming inside; live audio streams up to the mel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import AudioConfig
from audio.conformer import Conformer
from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.linear import Int8Linear, Linear
from lfm2_mm.loading import check

# Attention is quadratic: at the published shape 120 s take 150 MB for one layer's scores, 400 s
# (the length of the published position table) would take 1.6 GB.
MAX_SECONDS = 120
COUNTER = "num_batches_tracked"  # of batch normalisation in training; used by nobody


class AudioEncoder(nn.Module):
    """Ears: `conformer`, then `audio_adapter` to the backbone's width."""

    def __init__(self, config: AudioConfig) -> None:
        """With random weights, ready to be trained; `load_encoder` gives trained ones."""
        super().__init__()
        self.config = config
        hidden = config.backbone.hidden_size
        self.conformer = Conformer(config.encoder)
        self.norm = nn.LayerNorm(config.encoder.width)
        self.up = Linear(config.encoder.width, hidden, bias=True)
        self.out = Linear(hidden, hidden, bias=True)
        for module in self.modules():
            if isinstance(module, Linear):
                reset(module)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """mel (batch, time, features), frames of each row -> (batch, ⌈time / 8⌉, hidden), lengths.

        With gradients where they are on. Padding changes nothing.
        """
        x, lengths = self.conformer(mel.to(self.norm.weight.dtype), lengths)
        return self.out(F.gelu(self.up(self.norm(x)))), lengths

    @torch.inference_mode()
    def hear(self, mel: Tensor) -> Tensor:
        """One clip: mel (time, features) -> (⌈time / 8⌉, hidden). Raises BadInput when too long."""
        seconds = len(mel) * self.config.mel.hop / self.config.mel.sample_rate
        most = min(MAX_SECONDS, self.seconds_of_table)
        if seconds > most + 1:
            raise BadInput(
                f"the recording lasts {seconds:.0f} s; at most {most} s are heard at once: "
                "cut it, or transcribe it, which does so at pauses"
            )
        return self.forward(mel[None])[0][0]

    @property
    def seconds_of_table(self) -> int:
        """How long a clip the published position table covers."""
        frames = self.config.encoder.max_positions * self.config.encoder.factor
        return frames * self.config.mel.hop // self.config.mel.sample_rate


def layout(config: AudioConfig) -> dict[str, tuple[str, ...]]:
    """Our parameter or buffer -> the published tensors that are stacked to make it."""
    with torch.device("meta"):
        ours = AudioEncoder(config).state_dict()
    return {name: published_names(name) for name in ours if not name.endswith(COUNTER)}


def published_names(name: str) -> tuple[str, ...]:
    """What one of our tensors is called in the files; three for the fused projection."""
    owner, _, leaf = name.rpartition(".")
    for ours, theirs in (("norm", "0"), ("up", "1"), ("out", "3")):
        if owner == ours:
            return (f"audio_adapter.model.{theirs}.{leaf}",)
    if owner.endswith("self_attn.qkv"):
        return tuple(f"{owner.removesuffix('qkv')}linear_{part}.{leaf}" for part in "qkv")
    return (name,)


def load_encoder(
    config: AudioConfig, tensors: Iterable[tuple[str, Tensor]], choice: Choice
) -> AudioEncoder:
    """Ears for inference from published (key, tensor) pairs, all of which must be used.

    Under int8 the linear layers are packed, the convolutions stay float32; int4 means int8 here.
    Raises CheckpointDamaged.
    """
    choice = choice.for_many_rows()
    names = layout(config)
    with torch.device("meta"):
        encoder = AudioEncoder(config)
    awaited = {key: tensor.shape for key, tensor in published_encoder(encoder).items()}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors:
        if key.endswith(COUNTER):
            continue
        check(key, tensor, awaited.pop(key, None))
        found[key] = tensor
    if awaited:
        more = f" and {len(awaited) - 3} more" if len(awaited) > 3 else ""
        raise CheckpointDamaged(f"the weights lack {', '.join(sorted(awaited)[:3])}{more}")
    for name, parts in names.items():
        put(encoder, name, torch.cat([found.pop(part) for part in parts]), choice)
    drop_counters(encoder)
    return encoder.eval().requires_grad_(False)


def put(encoder: AudioEncoder, name: str, tensor: Tensor, choice: Choice) -> None:
    """One tensor where it belongs, in the dtype or packing chosen."""
    owner_name, _, leaf = name.rpartition(".")
    owner = encoder.get_submodule(owner_name)
    if isinstance(owner, Linear) and tensor.dim() == 3:
        tensor = tensor.squeeze(-1)  # published as a convolution of one step
    if choice.weights == "int8" and isinstance(owner, Linear) and leaf == "weight":
        parent, _, own = owner_name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, Int8Linear(tensor, owner.bias))
        return
    tensor = tensor.to(choice.device, choice.torch_dtype)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def drop_counters(encoder: AudioEncoder) -> None:
    """Forget how many batches normalisation was trained on: nobody asks, and it would stay meta."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.num_batches_tracked = None


def published_encoder(encoder: AudioEncoder) -> dict[str, Tensor]:
    """A float encoder's weights under the published names, for saving."""
    ours = encoder.state_dict()
    out: dict[str, Tensor] = {}
    for name, parts in layout(encoder.config).items():
        if name not in ours:
            raise ValueError("an int8 encoder has no weights to save; open it with dtype='fp32'")
        tensor = ours[name].detach()
        if "pointwise_conv" in name and name.endswith("weight"):
            tensor = tensor.unsqueeze(-1)
        out |= {k: t.contiguous() for k, t in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return out


def reset(linear: Linear) -> None:
    """Weights and bias as torch's own layers begin."""
    bound = 1 / math.sqrt(linear.weight.shape[1])
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.uniform_(linear.bias, -bound, bound)
