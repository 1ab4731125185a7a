"""From one hidden state to one frame: the transformer over codebooks. Knows no text and no sound.

Each codebook is one position. Its input is a slice of the projected hidden state plus the embedding
of the code chosen before it; a frame starts with an empty cache. The layers are a backbone's own
attention blocks (report, section 5.2; published as "depthformer").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import AudioConfig
from lfm2_mm.backbone import KV, Attention, Block, RMSNorm, Rotary, View
from lfm2_mm.fused import Stack, stack_for
from lfm2_mm.linear import Linear, PackedLinear

Choose = Callable[[Tensor], int]  # logits (codes,) -> the code
Step = Callable[[Tensor, int], Tensor]  # (width,) and its codebook -> (width,) after the layers
_UNTRIED = object()  # whether the layers can be compiled


class CodebookHead(nn.Module):
    """One codebook's embedding, and its logits; the output matrix is the embedding when tied."""

    def __init__(self, rows: int, width: int, eps: float, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))
        self.norm = RMSNorm(width, eps)
        self.head: nn.Module | None = None if tied else Linear(width, rows)

    def logits(self, x: Tensor) -> Tensor:
        """x (…, width) -> (…, rows)."""
        x = self.norm(x)
        return F.linear(x, self.embedding) if self.head is None else self.head(x)


class DepthTransformer(nn.Module):
    """Hidden states (n, hidden_size) <-> frames of `codebooks` codes, the end code included."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.whole, self.config = config, config.depth
        self.codebooks, width = config.codebooks, config.depth.width
        blocks = config.depth.blocks()
        self.project = Linear(config.backbone.hidden_size, self.codebooks * width, bias=True)
        self.layers = nn.ModuleList(Block(blocks, i) for i in range(config.depth.layers))
        self.heads = nn.ModuleList(
            CodebookHead(config.codebook_size + 1, width, blocks.norm_eps, tied=config.depth.tied)
            for _ in range(self.codebooks)
        )
        self._stack: object = _UNTRIED

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """All logits of known frames, with gradients: (n, hidden), (n, codebooks) int64 ->
        (n, codebooks, codes). The last code of a frame is only a target."""
        before = [
            F.embedding(codes[:, book], head.embedding)
            for book, head in enumerate(self._heads()[:-1])
        ]
        x = self._slices(hidden)
        x = x + torch.stack((torch.zeros_like(x[:, 0]), *before), 1).to(x.dtype)
        view = View((0,) * len(x), self.codebooks, None, causal=True)
        x = self._layers(x, view, self._rotary(x, 0, self.codebooks), [None] * len(self.layers))
        return torch.stack([head.logits(x[:, k]) for k, head in enumerate(self._heads())], 1)

    @torch.inference_mode()
    def frame(self, hidden: Tensor, choose: Choose) -> tuple[int, ...]:
        """hidden (hidden_size,) -> the codes `choose` takes, codebook after codebook."""
        slices = self._slices(hidden[None])[0]
        through = self._fused(slices) or self._plain(slices)
        codes: list[int] = []
        x = slices[0]
        for book, head in enumerate(self._heads()):
            codes.append(choose(head.logits(through(x, book))))
            if book + 1 < self.codebooks:
                x = slices[book + 1] + head.embedding[codes[-1]].to(x.dtype)
        return tuple(codes)

    def _plain(self, like: Tensor) -> Step:
        """The layers at one position after another, over caches of this frame."""
        caches = self._caches(like)

        def through(x: Tensor, book: int) -> Tensor:
            view = View((book,), 1, None, causal=True)
            return self._layers(x[None, None], view, self._rotary(x, book, 1), caches)[0, 0]

        return through

    def _fused(self, like: Tensor) -> Step | None:
        """The same in one call a position, where the weights are packed and the processor can."""
        if self._stack is _UNTRIED:
            packed = any(isinstance(module, PackedLinear) for module in self.layers.modules())
            blocks = cast("list[Block]", list(self.layers))
            self._stack = stack_for(blocks, self.config.blocks(), like.dtype) if packed else None
        stack = cast("Stack | None", self._stack)
        if stack is None:
            return None
        caches = [cache for cache in self._caches(like) if cache is not None]
        keys, values = [c.keys for c in caches], [c.values for c in caches]

        def through(x: Tensor, book: int) -> Tensor:
            with stack.lock:
                stack.bind(keys, values)
                return stack.run(x, book)

        return through

    def _slices(self, hidden: Tensor) -> Tensor:
        """(n, hidden) -> (n, codebooks, width)."""
        return self.project(hidden).view(len(hidden), self.codebooks, self.config.width)

    def _layers(self, x: Tensor, view: View, rotary: Rotary, caches: list[KV | None]) -> Tensor:
        for block, cache in zip(cast("list[Block]", self.layers), caches, strict=True):
            attention = cast(Attention, block.self_attn)
            x = x + attention(block.operator_norm(x), view, rotary, None, cache)
            x = x + block.feed_forward(block.ffn_norm(x))
        return x

    def _rotary(self, like: Tensor, start: int, count: int) -> Rotary:
        positions = torch.arange(start, start + count, device=like.device)[None]
        config = self.config
        return Rotary(positions, config.width // config.heads, config.rope_theta, like.dtype)

    def _caches(self, like: Tensor) -> list[KV | None]:
        config = self.config
        shape = (1, config.kv_heads, self.codebooks, config.width // config.heads)
        return [KV(like.new_empty(shape), like.new_empty(shape)) for _ in self.layers]

    def _heads(self) -> list[CodebookHead]:
        return cast("list[CodebookHead]", list(self.heads))


class FrameEmbedding(nn.Module):
    """Frames of codes -> positions of the backbone: the sum of one row a codebook."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.rows = config.codebook_size + 1
        self.weight = nn.Parameter(
            torch.empty(config.codebooks * self.rows, config.backbone.hidden_size)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """codes (…, codebooks) int64 -> (…, hidden)."""
        offsets = torch.arange(codes.shape[-1], device=codes.device) * self.rows
        return F.embedding(codes + offsets, self.weight).sum(-2)
