"""nano-vl as a module: tower, projector, backbone, and heads that only training has.

Knows tensors and the file format; knows nothing of pictures' contents or of how long to train.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nano_vl_draw import CELLS
from nano_vl_scenes import COLOURS, KINDS
from nano_vl_tokens import IMAGE
from nano_vl_words import CHARACTERS
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from vision.config import TowerConfig, VisionConfig
from vision.tower import VisionModel

GRID = 16  # the tower's learned positions: 16 x 16, resized to each picture


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    tower: int = 192
    tower_layers: int = 5
    projector: int = 384
    hidden: int = 192
    layers: str = "cacaca"  # c: convolution, a: attention
    feed_forward: int = 576

    def config(self, vocabulary: int) -> VisionConfig:
        tower = TowerConfig(
            self.tower, 4 * self.tower, self.tower // 32, self.tower_layers, grid=GRID
        )
        return VisionConfig(
            tower, self.backbone(vocabulary), projector_width=self.projector, image_token_id=IMAGE
        )

    def backbone(self, vocabulary: int) -> BackboneConfig:
        kinds = tuple({"c": "conv", "a": "full_attention"}[letter] for letter in self.layers)
        return BackboneConfig(
            vocab_size=vocabulary, hidden_size=self.hidden, layer_types=kinds,
            heads=self.hidden // 32, kv_heads=self.hidden // 96 or 1,
            feed_forward=self.feed_forward, head_dim=32, max_positions=4096,
        )  # fmt: skip


def positions(size: int) -> Tensor:
    """(256, size): sines and cosines of column and row, from 3 places of the grid a wave to 40."""
    waves = 2 * math.pi / torch.logspace(math.log10(3), math.log10(40), size // 4)
    angles = torch.arange(GRID)[:, None] * waves
    along = torch.stack([angles.cos(), angles.sin()], -1).flatten(1)
    columns = along[None].expand(GRID, GRID, -1)
    rows = along[:, None].expand(GRID, GRID, -1)
    return torch.cat([columns, rows], -1).reshape(GRID * GRID, size)


class NanoVL(nn.Module):
    """Patches and ids -> hidden states; tower features -> labels of cells and patches."""

    def __init__(self, shape: Shape, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        config = shape.config(vocabulary)
        self.vision = VisionModel.new(config, seed=seed)
        self.backbone = Backbone.new(config.backbone, seed=seed)
        self.cells = nn.Linear(shape.tower, CELLS * (1 + len(CHARACTERS)))
        self.kinds = nn.Linear(shape.tower, 1 + len(KINDS))
        self.colours = nn.Linear(shape.tower, 1 + len(COLOURS))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "vision.tower.positions":
                    parameter.copy_(positions(shape.tower))
                elif name == "backbone.embedding":
                    parameter.normal_(0, 0.2, generator=generator)
                elif name == "backbone.norm.weight":
                    parameter.fill_(0.3)  # first logits near 1: the head is the embedding
                elif parameter.dim() > 1:
                    quiet = 0.5 if name.endswith(QUIET) else 1.0
                    inputs = parameter.shape[0 if name.endswith("conv.weight") else 1]
                    parameter.normal_(0, quiet * inputs**-0.5, generator=generator)
                elif name.endswith("bias"):
                    parameter.zero_()

    def see(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """(n, rows * columns, 768) -> features (n, rows * columns, tower)."""
        return self.vision.tower(patches, rows, columns)

    def read(self, opening: Tensor, seen: Tensor | None, ids: Tensor) -> Tensor:
        """Hidden states at `ids` (n, tokens), which follow the opening and the picture."""
        embeds = self.backbone.embed(ids)
        if seen is None:
            return self.backbone(embeds)
        start = self.backbone.embed(opening)[None].expand(len(ids), -1, -1)
        hidden = self.backbone(torch.cat([start, seen.to(embeds.dtype), embeds], 1))
        return hidden[:, -ids.shape[1] :]


QUIET = ("out_proj.weight", "fc2.weight", "w2.weight")  # what a block adds starts small


class Attentions:
    """Stands in for attention while training: in float32, and remembering what causal layers ask.

    Under autocast attention would be in bfloat16, which on a CPU is slower, several times for short
    sequences. `asked` holds queries and keys of the backbone's last pass, layer by layer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            if options.get("is_causal"):
                self.asked.append((q, k))
            return PLAIN_ATTENTION(q, k, v, **options)

    @contextmanager
    def watched(self) -> Iterator[None]:
        F.scaled_dot_product_attention = self  # type: ignore[assignment]
        try:
            yield
        finally:
            F.scaled_dot_product_attention = PLAIN_ATTENTION

    def guidance(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Cross-entropy of where the last two layers look, against where they should.

        One group of heads is guided, those that share the first key head. rows, queries, keys (m,):
        in the row, the query at one position should look at the key at another.
        """
        losses = []
        for q, k in self.asked[-2:]:
            heads = q.shape[1] // k.shape[1]
            some = q[rows, :heads, queries]  # (m, heads, dim)
            scores = torch.einsum("mhd,mtd->mht", some, k[rows, 0]) * q.shape[-1] ** -0.5
            later = torch.arange(k.shape[2], device=q.device) > queries[:, None]
            scores = scores.masked_fill(later[:, None], float("-inf"))
            losses.append(F.cross_entropy(scores.flatten(0, 1), keys.repeat_interleave(heads)))
        return torch.stack(losses).mean()


PLAIN_ATTENTION = F.scaled_dot_product_attention


def cross_entropy_of_labels(logits: Tensor, labels: Tensor, blank: float) -> Tensor:
    """Mean over places, those without label counted `blank`; 0 where nothing is labelled."""
    flat, wanted = logits.float().flatten(0, -2), labels.flatten()
    weights = torch.ones(flat.shape[-1], device=flat.device)
    weights[0] = blank
    return F.cross_entropy(flat, wanted, weights)


def hidden_matrices(names: Sequence[str]) -> list[str]:
    """The matrices between hidden states: what Muon is made for."""
    return [
        name for name in names
        if name.startswith(("vision.tower.layers", "backbone.layers", "vision.projector"))
        and name.endswith(".weight") and "norm" not in name and not name.endswith("conv.weight")
    ]  # fmt: skip
