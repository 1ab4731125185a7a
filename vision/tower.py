"""The SigLIP2 tower and the projector: patches of a crop -> rows for the backbone.

The arithmetic is that of transformers' Siglip2VisionModel (vision_use_head false) and Lfm2VlModel.
Crops of one call have one shape: no padding, no mask. Knows no pictures, no files.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.linear import Linear
from vision.config import TowerConfig, VisionConfig

if TYPE_CHECKING:
    from vision.compiled_tower import CompiledTower

MAX_SHAPES = 64  # shapes whose resized positions are kept: a crop of 256 tokens is 3 MB each


class Attention(nn.Module):
    """Every patch of a crop sees every other."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv_proj = Linear(config.width, 3 * config.width, bias=True)
        self.out_proj = Linear(config.width, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        n, patches, width = x.shape
        qkv = self.qkv_proj(x).view(n, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).reshape(n, patches, width))


class FeedForward(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.feed_forward, bias=True)
        self.fc2 = Linear(config.feed_forward, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-normalised attention and feed-forward, each with a residual."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class VisionTower(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = Linear(config.patch_values, config.width, bias=True)
        self.positions = nn.Parameter(torch.empty(config.grid**2, config.width))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.post_layernorm = nn.LayerNorm(config.width, config.norm_eps)
        self.resized: dict[tuple[int, int], Tensor] = {}

    def forward(self, patches: Tensor, rows: int, cols: int) -> Tensor:
        """patches (n, rows * cols, patch values) in -1..1, row by row -> (…, …, width)."""
        x = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        x = x + self.positions_of(rows, cols)
        if self.compiled is not None:
            return self.compiled.run(x)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)

    @functools.cached_property
    def compiled(self) -> CompiledTower | None:
        """The same blocks in fewer passes, where the weights are int8 and the processor can."""
        from vision.compiled_tower import compiled_tower

        return compiled_tower(self)

    def positions_of(self, rows: int, cols: int) -> Tensor:
        """(rows * cols, width): the learned grid, resized. Kept by shape unless it is trained."""
        if self.positions.requires_grad:
            return self.resize(rows, cols)
        if (rows, cols) not in self.resized:
            if len(self.resized) >= MAX_SHAPES:
                self.resized.pop(next(iter(self.resized)))
            self.resized[rows, cols] = self.resize(rows, cols)
        return self.resized[rows, cols]

    def resize(self, rows: int, cols: int) -> Tensor:
        """In float32: antialiasing exists for no smaller dtype on the CPU."""
        side = self.config.grid
        grid = self.positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, size=(rows, cols), mode="bilinear", align_corners=False, antialias=True
        )
        return grid.flatten(2)[0].t().contiguous().to(self.positions.dtype)


class Projector(nn.Module):
    """Squares of downsample x downsample patches become one row of the backbone's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.downsample = config.downsample
        inputs = config.tower.width * config.downsample**2
        self.layer_norm = nn.LayerNorm(inputs) if config.projector_norm else None
        self.linear_1 = Linear(inputs, config.projector_width, bias=config.projector_bias)
        self.linear_2 = Linear(
            config.projector_width, config.backbone.hidden_size, bias=config.projector_bias
        )

    def forward(self, features: Tensor, rows: int, cols: int) -> Tensor:
        """features (n, rows * cols, width) -> (n, rows * cols / downsample², hidden)."""
        x = self.unshuffle(features, rows, cols)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return self.linear_2(F.gelu(self.linear_1(x)))

    def unshuffle(self, features: Tensor, rows: int, cols: int) -> Tensor:
        """The patches of a square side by side, row by row."""
        n, _, width = features.shape
        f = self.downsample
        if rows % f or cols % f:
            raise ValueError(f"{rows} x {cols} patches do not divide into squares of {f} x {f}")
        x = features.view(n, rows // f, f, cols // f, f, width).transpose(2, 3)
        return x.reshape(n, rows * cols // f**2, width * f**2)


class VisionModel(nn.Module):
    """Tower and projector: what a vision checkpoint holds besides its backbone."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTower(config.tower)
        self.projector = Projector(config)

    @classmethod
    def new(cls, config: VisionConfig, *, seed: int = 0) -> VisionModel:
        """Random weights, ready to be trained: gain 1 in every matrix, positions of length 1."""
        model = cls(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() > 1:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        return model

    @property
    def device(self) -> torch.device:
        return self.tower.positions.device

    def forward(self, patches: Tensor, rows: int, cols: int) -> Tensor:
        """patches (n, rows * cols, patch values) of n crops of one shape -> (n, tokens, hidden)."""
        return self.projector(self.tower(patches, rows, cols), rows, cols)
