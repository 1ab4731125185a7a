"""Mimi's decoder: codes -> waveform, a frame at a time, exactly. Knows layers; no names in files.

Kyutai's Mimi (arXiv:2410.00037, section 3.3): tables of codes, twice as many steps, a causal
transformer with a window, and SEANet's convolutions up to 24 kHz. Each convolution, plain or
transposed, is one matrix product over its last few inputs, so that keeping those inputs is all it
takes to go on where a stream stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audio.codec import checked, wave_of
from audio.recent import Recent, within
from lfm2_mm.backbone import Rotary, View
from lfm2_mm.linear import Linear

AT_ONCE = 32  # frames computed together: memory does not grow with the length


@dataclass(frozen=True)
class MimiConfig:
    """Sizes; the defaults are the published ones, which no file states."""

    codebooks: int = 8  # used, of 32
    codebook_size: int = 2048
    codebook_width: int = 256
    width: int = 512
    layers: int = 8
    heads: int = 8
    feed_forward: int = 2048
    window: int = 250  # steps that attention sees, its own one among them
    theta: float = 10_000.0
    ratios: tuple[int, ...] = (8, 6, 5, 4)  # by which SEANet multiplies the steps
    filters: int = 64  # channels before the last convolution
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    rate: int = 24_000  # Hz

    @property
    def steps(self) -> int:
        """Of the transformer in each frame."""
        return 2

    @property
    def samples_per_frame(self) -> int:
        return self.steps * math.prod(self.ratios)


@dataclass(frozen=True, eq=False)
class Remembered:
    """What the next frame needs. Tensors in it are never changed."""

    code: Tensor  # (1, width): the last frame before it was doubled
    attention: Any  # of each layer keys and values (1, heads, ≤ window - 1, dim); compiled: a Past
    inputs: tuple[Tensor, ...]  # of each convolution: (kernel - 1, channels)
    steps: int = 0


class Windowed(nn.Module):
    """A causal convolution: each output is one product with the last `kernel` inputs.

    With `stride`, a transposed one: every input makes `stride` outputs, from itself and the input
    before it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        self.product = Linear(kernel * inputs, stride * outputs, bias=True)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, inputs), `before` (kernel - 1, inputs) -> (stride · n, outputs), next `before`."""
        if self.kernel == 1:
            return self.product(x), before
        held = torch.cat((before, x))
        windows = held.as_strided((len(x), self.kernel * self.inputs), (self.inputs, 1))
        return self.product(windows).view(-1, self.outputs), held[len(x) :].clone()


class MimiBlock(nn.Module):
    """Pre-normalised attention and feed-forward, each scaled channel by channel."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window = config.heads, config.window
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out_proj = Linear(width, width)
        self.linear1 = Linear(width, config.feed_forward)
        self.linear2 = Linear(config.feed_forward, width)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(
        self, x: Tensor, rotary: Rotary, view: View, sees: Tensor, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (n, width), rows of the positions of `view`."""
        qkv = self.qkv(self.norm1(x)).view(1, len(x), 3, self.heads, -1)
        q, k, v = qkv.unbind(2)
        q, k = rotary.turn(q).transpose(1, 2), rotary.turn(k).transpose(1, 2)
        cache = Recent(*memory)
        keys, values = cache.extend(k, v.transpose(1, 2), view)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=sees)
        x = x + self.scale1 * self.out_proj(y[0].transpose(0, 1).flatten(1))
        y = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + self.scale2 * y, cache.last(self.window - 1)


class MimiDecoder(nn.Module):
    """Weights of the decoding half, behind the Codec protocol."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        self.rate, self.samples_per_frame = config.rate, config.samples_per_frame
        self.codebooks, self.codebook_size = config.codebooks, config.codebook_size
        self.table = nn.Parameter(
            torch.empty(config.codebooks * config.codebook_size, config.width)
        )
        self.doubling = nn.Parameter(torch.empty(2, config.steps, config.width))
        self.layers = nn.ModuleList(MimiBlock(config) for _ in range(config.layers))
        self.convolutions = nn.ModuleList(seanet(config))

    def start(self) -> Remembered:
        config, device = self.config, self.table.device
        empty = torch.zeros(1, config.heads, 0, config.width // config.heads, device=device)
        convolutions = cast("list[Windowed]", self.convolutions)
        return Remembered(
            torch.zeros(1, config.width, device=device),
            ((empty, empty),) * config.layers,
            tuple(torch.zeros(c.kernel - 1, c.inputs, device=device) for c in convolutions),
        )

    @torch.inference_mode()
    def decode(self, codes: Tensor, state: Remembered) -> tuple[Tensor, Remembered]:
        """codes (codebooks, n) -> (1,920 n,) samples, none held back. Raises BadInput."""
        codes = checked(codes, self.codebooks, self.codebook_size).to(self.table.device)
        parts = [torch.zeros(0)]
        for piece in codes.split(AT_ONCE, 1):
            if piece.shape[1]:
                samples, state = self._advance(piece, state)
                parts.append(samples.cpu())
        return torch.cat(parts), state

    def finish(self, state: Remembered) -> Tensor:
        """Nothing: every frame sounds at once."""
        return torch.zeros(0)

    def wave(self, codes: Tensor) -> Tensor:
        """codes (codebooks, n) -> (1,920 n,) float32 samples; memory grows with those alone."""
        return wave_of(self, codes)

    def _advance(self, codes: Tensor, state: Remembered) -> tuple[Tensor, Remembered]:
        first = self.codebook_size * torch.arange(self.codebooks, device=codes.device)[:, None]
        frames = F.embedding(codes + first, self.table).sum(0)
        held = torch.cat((state.code, frames))
        x = held[1:, None] * self.doubling[0] + held[:-1, None] * self.doubling[1]
        x, attention = self._attend(x.flatten(0, 1), state)
        x, inputs = self._sound(x, state.inputs)
        steps = state.steps + self.config.steps * len(frames)
        return x[:, 0], Remembered(frames[-1:], attention, inputs, steps)

    def _attend(
        self, x: Tensor, state: Remembered
    ) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        config, new = self.config, len(x)
        past = min(state.steps, config.window - 1)
        positions = torch.arange(state.steps, state.steps + new, device=x.device)[None]
        rotary = Rotary(positions, config.width // config.heads, config.theta, x.dtype)
        view = View((past,), new, None, True)
        sees = within(past, new, config.window, x.device)
        kept = []
        for block, memory in zip(self.layers, state.attention, strict=True):
            x, last = block(x, rotary, view, sees, memory)
            kept.append(last)
        return x, tuple(kept)

    def _sound(self, x: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """SEANet: a convolution; for each ratio a transposed one and a residual pair; the last."""
        convolutions = list(cast("list[Windowed]", self.convolutions))
        first, *middle, last = zip(convolutions, before, strict=True)
        x, kept = first[0](x, first[1])
        after = [kept]
        for (up, up_before), (wide, wide_before), (back, back_before) in zip(
            middle[::3], middle[1::3], middle[2::3], strict=True
        ):
            x, kept_up = up(F.elu(x), up_before)
            y, kept_wide = wide(F.elu(x), wide_before)
            y, kept_back = back(F.elu(y), back_before)
            x = x + y
            after += [kept_up, kept_wide, kept_back]
        x, kept = last[0](F.elu(x), last[1])
        return x, (*after, kept)


def seanet(config: MimiConfig) -> list[Windowed]:
    """Its convolutions, in the order in which sound passes through them."""
    channels = config.filters << len(config.ratios)
    made = [Windowed(config.width, channels, config.kernel)]
    for ratio in config.ratios:
        half = channels // 2
        made.append(Windowed(channels, half, 2, stride=ratio))
        made.append(Windowed(half, half // 2, config.residual_kernel))
        made.append(Windowed(half // 2, half, 1))
        channels = half
    return [*made, Windowed(channels, 1, config.last_kernel)]
