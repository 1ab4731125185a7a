"""FastConformer: log-mel frames -> one vector each 80 ms. Knows layers; knows no names in files.

The arithmetic of NVIDIA NeMo's FastConformer with relative positions and full context
(transformers' ParakeetEncoder is the same network, and the reference in tests). Own layers because
they take the floor's linear layers in any dtype, and because transformers' take 4 s to import.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import EncoderConfig
from lfm2_mm.linear import Linear

BASE = 10_000.0  # of the positions' wavelengths


class Subsampling(nn.Module):
    """Three strided convolutions over time and features: eight frames become one position."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.channels
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU()]
        for _ in range(round(math.log2(config.factor)) - 1):
            deep = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
            layers += [deep, nn.Conv2d(channels, channels, 1), nn.ReLU()]
        self.conv = nn.ModuleList(layers)
        features = config.features
        for _ in range(round(math.log2(config.factor))):
            features = -(-features // 2)
        self.out = Linear(channels * features, config.width, bias=True)

    def forward(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, time, features) -> (batch, ⌈time / 8⌉, width), and the lengths."""
        x = mel[:, None]
        for layer in self.conv:
            x = layer(x)
            if isinstance(layer, nn.Conv2d) and lengths is not None:
                if layer.stride != (1, 1):
                    lengths = (lengths + 1) // 2
                x = x * real(lengths, x.shape[2])[:, None, :, None]
        return self.out(x.transpose(1, 2).flatten(2)), lengths


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.linear1 = Linear(config.width, config.feed_forward, bias=True)
        self.linear2 = Linear(config.feed_forward, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class RelativeAttention(nn.Module):
    """Attention whose scores add content and distance (Transformer-XL, arXiv:1901.02860, 3.3)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.heads, config.width // config.heads
        self.qkv = Linear(config.width, 3 * config.width, bias=True)
        self.linear_out = Linear(config.width, config.width, bias=True)
        self.linear_pos = Linear(config.width, config.width)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, self.dim))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, self.dim))

    def forward(self, x: Tensor, distances: Tensor, sees: Tensor | None) -> Tensor:
        """x (batch, time, width); distances (2 · time - 1, width); sees (batch, 1, 1, time)."""
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, self.dim).unbind(2)
        places = self.linear_pos(distances).view(-1, self.heads, self.dim)
        by_place = (q + self.pos_bias_v).transpose(1, 2) @ places.permute(1, 2, 0)
        scores = by_distance(by_place) * self.dim**-0.5
        if sees is not None:
            scores = scores.masked_fill(~sees, -torch.inf)
        q, k, v = ((q + self.pos_bias_u).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)
        return self.linear_out(y.transpose(1, 2).reshape(batch, time, -1))


class Convolution(nn.Module):
    """Gate, a convolution of each channel over time, batch normalisation; pointwise around it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.pointwise_conv1 = Linear(width, 2 * width, bias=True)
        self.depthwise_conv = nn.Conv1d(
            width, width, config.kernel, padding=config.kernel // 2, groups=width
        )
        self.batch_norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = Linear(width, width, bias=True)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x (batch, time, width); keep (batch, time, 1), False at padding."""
        x = F.glu(self.pointwise_conv1(x), -1)
        if keep is not None:
            x = x * keep
        x = self.batch_norm(self.depthwise_conv(x.transpose(1, 2)))
        return self.pointwise_conv2(F.silu(x).transpose(1, 2))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward; a norm before each."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.feed_forward1, self.feed_forward2 = FeedForward(config), FeedForward(config)
        self.self_attn = RelativeAttention(config)
        self.conv = Convolution(config)
        self.norm_feed_forward1 = nn.LayerNorm(config.width)
        self.norm_self_att = nn.LayerNorm(config.width)
        self.norm_conv = nn.LayerNorm(config.width)
        self.norm_feed_forward2 = nn.LayerNorm(config.width)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, distances: Tensor, keep: Tensor | None) -> Tensor:
        sees = None if keep is None else keep[..., 0][:, None, None, :]
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), distances, sees)
        x = x + self.conv(self.norm_conv(x), keep)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)


class Conformer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pre_encode = Subsampling(config)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """mel (batch, time, features), frames of each row -> (batch, ⌈time / 8⌉, width), lengths.

        Without lengths all frames are real. What stands at padding changes nothing.
        """
        if lengths is not None:
            mel = mel * real(lengths, mel.shape[1])[..., None]
        x, lengths = self.pre_encode(mel, lengths)
        if self.config.scale_input:
            x = x * self.config.width**0.5
        keep = None if lengths is None else real(lengths, x.shape[1])[..., None]
        distances = sinusoids(x.shape[1], self.config.width, x.device).to(x.dtype)
        for block in cast("list[ConformerBlock]", self.layers):
            x = block(x, distances, keep)
        return x, lengths


def real(lengths: Tensor, size: int) -> Tensor:
    """(batch, size) bool: the first `lengths` of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def by_distance(scores: Tensor) -> Tensor:
    """(…, time, 2 · time - 1) scores, column for distance time-1 first -> (…, time, time).

    Row i, key j takes the column of distance i - j, which is time - 1 - i + j: a view whose rows
    begin one column earlier each.
    """
    *front, time, columns = scores.shape
    scores = scores.contiguous()
    strides = (*scores.stride()[:-2], columns - 1, 1)
    return scores.as_strided((*front, time, time), strides, scores.storage_offset() + time - 1)


def sinusoids(time: int, width: int, device: torch.device) -> Tensor:
    """(2 · time - 1, width) float32: sines and cosines of the distances time-1 to -(time-1)."""
    distances = torch.arange(time - 1, -time, -1, dtype=torch.float32, device=device)
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    angles = distances[:, None] * torch.exp(-math.log(BASE) * steps)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
