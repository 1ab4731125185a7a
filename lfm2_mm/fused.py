"""One token through the whole stack in one compiled call. Knows the layers' order, no arithmetic.

What it computes is what Backbone._layers computes for one row and one position, into the same
state. It is there for int8 backbones without experts, on processors with byte products, where all
sizes are whole lanes; `stepper_for` says.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from lfm2_mm.compiled import register_width
from lfm2_mm.linear import Int8Linear
from lfm2_mm.program import Operation, Program, Row, float_bits
from lfm2_mm.state import State, Store
from lfm2_mm.step_ir import Shape
from lfm2_mm.vector_ir import LANES

if TYPE_CHECKING:
    from lfm2_mm.backbone import Attention, Backbone, Block, FeedForward, ShortConv


class Stepper:
    """The program of a backbone, and the state it is bound to."""

    def __init__(self, backbone: Backbone, shape: Shape) -> None:
        config = backbone.config
        self._config = config
        self._program = program = Program(shape)
        self._turns = program.row(2 * config.head_dim)
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        self._frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
        self._attentions: list[Operation] = []
        self._convolutions: list[Operation] = []
        self._bound: weakref.ref[Store] | None = None
        self._x = program.row(config.hidden_size)
        for block in cast("list[Block]", backbone.layers):
            self._block(block)
        self._out = program.norm(self._x, backbone.norm.weight, config.norm_eps)

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
        qkv = program.linear(normed, cast(Int8Linear, attention.qkv_proj))
        mixed = program.row(attention.heads * attention.dim)
        operation = program.add(
            "attend", qkv=qkv.address, q_weight=program.floats(attention.q_layernorm.weight),
            k_weight=program.floats(attention.k_layernorm.weight),
            eps=float_bits(self._config.norm_eps), turns=self._turns.address,
            kv_heads=attention.kv_heads, keys=0, values=0, apart=0,
            position=int(program.position.ctypes.data), scores=0, room=0, out=mixed.address,
        )  # fmt: skip
        self._attentions.append(operation)
        program.linear(mixed, cast(Int8Linear, attention.out_proj), onto=self._x)

    def _convolution(self, conv: ShortConv, normed: Row) -> None:
        program = self._program
        gates = program.linear(normed, cast(Int8Linear, conv.in_proj))
        mixed = program.row(self._x.size)
        operation = program.add(
            "convolve", gates=gates.address, size=self._x.size, inputs=0,
            position=int(program.position.ctypes.data), lead=conv.weight.shape[0] - 1,
            taps=program.floats(conv.weight), bias=program.floats(conv.bias), out=mixed.address,
        )  # fmt: skip
        self._convolutions.append(operation)
        program.linear(mixed, cast(Int8Linear, conv.out_proj), onto=self._x)

    def _feed_forward(self, network: FeedForward, normed: Row) -> None:
        program = self._program
        gates = program.linear(normed, cast(Int8Linear, network.w13))
        mixed = program.row(gates.size // 2)
        program.add("swiglu", gates=gates.address, size=mixed.size, out=mixed.address)
        program.linear(mixed, cast(Int8Linear, network.w2), onto=self._x)

    def step(self, embeds: Tensor, state: State) -> tuple[Tensor, State]:
        """embeds (1, 1, hidden) float32 -> hidden (1, 1, hidden) and the next state."""
        with self._program.lock:
            store = state.room_for(1)
            self._bind(store)
            (position,) = state.lengths
            self._program.position[0] = position
            angles = np.float32(position) * self._frequencies
            cosines, sines = np.cos(angles), np.sin(angles)
            self._turns.values[:] = np.concatenate([cosines, cosines, -sines, sines])
            self._x.values[:] = embeds.reshape(-1).numpy()
            self._program.run()
            hidden = torch.from_numpy(self._out.values.copy()).view(1, 1, -1)
            store.lengths = (position + 1,)
        return hidden, State(store, store.lengths)

    def _bind(self, store: Store) -> None:
        """Let the operations read and write these buffers."""
        if self._bound is not None and self._bound() is store:
            return
        config = self._config
        for operation, inputs in zip(self._convolutions, store.inputs, strict=True):
            operation.set(inputs=inputs.data_ptr())
        room = -(-store.capacity // LANES) * LANES * 4
        scores = np.empty(config.heads * room // 4, np.float32)
        self._scores = scores
        pairs = zip(store.keys, store.values, strict=True)
        for operation, (keys, values) in zip(self._attentions, pairs, strict=True):
            operation.set(
                keys=keys.data_ptr(), values=values.data_ptr(),
                apart=keys.stride(1) * keys.element_size(),
                scores=int(scores.ctypes.data), room=room,
            )  # fmt: skip
        self._bound = weakref.ref(store)


def stepper_for(backbone: Backbone, cache: torch.dtype) -> Stepper | None:
    """A stepper where there can be one, else None. cache: the dtype that states are kept in."""
    config, width = backbone.config, register_width()
    sizes = (config.hidden_size, config.feed_forward, config.head_dim)
    fits = (
        backbone.packed
        and not backbone.bidirectional
        and config.experts is None
        and width is not None
        and all(size % LANES == 0 for size in sizes)
        and all(m.packed.memory is not None for m in backbone.layers.modules()
                if isinstance(m, Int8Linear))
    )  # fmt: skip
    if not fits:
        return None
    group = config.heads // config.kv_heads
    return Stepper(backbone, Shape(config.head_dim, group, cache == torch.bfloat16, width == 64))
