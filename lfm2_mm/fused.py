"""One position through a stack of layers in one compiled call. Knows their order, no arithmetic.

What it computes is what the modules compute for one row and one position, into the same buffers.
It is there for packed layers without experts, on processors with byte products, where all sizes
are whole lanes; `stack_for` says. What differs from the modules is the order of float sums: what
falls between two int8 levels may then round the other way, as with any change of order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from lfm2_mm.compiled import register_width
from lfm2_mm.config import BackboneConfig
from lfm2_mm.linear import PackedLinear
from lfm2_mm.program import Operation, Program, Row, float_bits
from lfm2_mm.step_ir import Shape
from lfm2_mm.vector_ir import LANES

if TYPE_CHECKING:
    from lfm2_mm.backbone import Attention, Block, FeedForward, ShortConv


class Stack:
    """The program of some layers. Hold `lock` from `bind` to the end of `run`."""

    def __init__(
        self, blocks: Iterable[Block], config: BackboneConfig, shape: Shape, norm: Tensor | None
    ) -> None:
        """norm: the weight of a last normalisation; None: there is none."""
        self._config = config
        self._program = program = Program(shape)
        self.lock = program.lock
        self._turns = program.row(2 * config.head_dim)
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        self._frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
        self._attentions: list[Operation] = []
        self._convolutions: list[Operation] = []
        self._bound: list[int] = []
        self._x = program.row(config.hidden_size)
        for block in blocks:
            self._block(block)
        last = norm is not None
        self._out = program.norm(self._x, cast(Tensor, norm), config.norm_eps) if last else self._x

    def _block(self, block: Block) -> None:
        program, eps = self._program, self._config.norm_eps
        normed = program.norm(self._x, block.operator_norm.weight, eps)
        if block.self_attn is not None:
            self._attention(block.self_attn, normed)
        else:
            self._convolution(cast("ShortConv", block.conv), normed)
        normed = program.norm(self._x, block.ffn_norm.weight, eps)
        self._feed_forward(cast("FeedForward", block.feed_forward), normed)

    def _attention(self, attention: Attention, normed: Row) -> None:
        program = self._program
        qkv = program.linear(normed, cast(PackedLinear, attention.qkv_proj))
        mixed = program.row(attention.heads * attention.dim)
        operation = program.add(
            "attend", qkv=qkv.address, q_weight=program.floats(attention.q_layernorm.weight),
            k_weight=program.floats(attention.k_layernorm.weight),
            eps=float_bits(self._config.norm_eps), turns=self._turns.address,
            kv_heads=attention.kv_heads, keys=0, values=0, apart=0,
            position=program.position.address, scores=0, room=0, out=mixed.address,
        )  # fmt: skip
        self._attentions.append(operation)
        program.linear(mixed, cast(PackedLinear, attention.out_proj), onto=self._x)

    def _convolution(self, conv: ShortConv, normed: Row) -> None:
        program = self._program
        gates = program.linear(normed, cast(PackedLinear, conv.in_proj))
        mixed = program.row(self._x.size)
        operation = program.add(
            "convolve", gates=gates.address, size=self._x.size, inputs=0,
            position=program.position.address, lead=conv.weight.shape[0] - 1,
            taps=program.floats(conv.weight), bias=program.floats(conv.bias), out=mixed.address,
        )  # fmt: skip
        self._convolutions.append(operation)
        program.linear(mixed, cast(PackedLinear, conv.out_proj), onto=self._x)

    def _feed_forward(self, network: FeedForward, normed: Row) -> None:
        program = self._program
        gates = program.linear(normed, cast(PackedLinear, network.w13))
        mixed = program.row(gates.size // 2)
        program.add("swiglu", gates=gates.address, size=mixed.size, out=mixed.address)
        program.linear(mixed, cast(PackedLinear, network.w2), onto=self._x)

    def bind(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], inputs: Sequence[Tensor] = ()
    ) -> None:
        """Read and write these buffers: of each attention layer (1, kv_heads, capacity, head_dim),
        of each convolution layer (1, kernel - 1 + capacity, hidden), as lfm2_mm.state has them.

        They must outlive the next `run`, have the stack's dtype, and room for its position.
        """
        places = [tensor.data_ptr() for tensor in (*keys, *values, *inputs)]
        if places == self._bound:
            return
        for operation, tensor in zip(self._convolutions, inputs, strict=True):
            operation.set(inputs=tensor.data_ptr())
        room = -(-keys[0].shape[2] // LANES) * LANES if keys else 0
        self._scores = np.empty(self._config.heads * room, np.float32)
        for operation, k, v in zip(self._attentions, keys, values, strict=True):
            operation.set(keys=k.data_ptr(), values=v.data_ptr(),
                          apart=k.stride(1) * k.element_size(),
                          scores=int(self._scores.ctypes.data), room=4 * room)  # fmt: skip
        self._bound = places

    def run(self, x: Tensor, position: int) -> Tensor:
        """x (hidden,) float32 at `position`, after what the buffers hold -> (hidden,)."""
        self._program.position.values[0] = position
        angles = np.float32(position) * self._frequencies
        cosines, sines = np.cos(angles), np.sin(angles)
        self._turns.values[:] = np.concatenate([cosines, cosines, -sines, sines])
        self._x.values[:] = x.numpy()
        self._program.run()
        return torch.from_numpy(self._out.values.copy())


def stack_for(
    blocks: Sequence[Block], config: BackboneConfig, cache: torch.dtype, norm: Tensor | None = None
) -> Stack | None:
    """A stack where there can be one, else None. cache: what keys, values and inputs are in."""
    width = register_width()
    sizes = (config.hidden_size, config.feed_forward, config.head_dim)
    if width is None or config.experts is not None or any(size % LANES for size in sizes):
        return None
    if cache not in (torch.bfloat16, torch.float32):
        return None
    if not all(readable(module) for block in blocks for module in block.modules()):
        return None
    group = config.heads // config.kv_heads
    shape = Shape(config.head_dim, group, cache == torch.bfloat16, wide=width == 64)
    return Stack(blocks, config, shape, norm)


def readable(module: torch.nn.Module) -> bool:
    """Whether our products can read this layer's weights, if it has any."""
    from lfm2_mm.linear import Linear

    if isinstance(module, PackedLinear):
        return module.compiled
    return not isinstance(module, Linear)
