"""Mimi's decoder with a frame in one compiled call. What it computes is audio.mimi's MimiDecoder.

A frame is two steps of the transformer and 1,920 samples: a few rows at first, which wait for
weights to be read, many at last. Weights are read once, in the order they lie. Every frame goes
through the same call, so frames one by one are the whole, bit for bit. Knows the order of layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from audio.codec import checked, wave_of
from audio.mimi import MimiConfig, Remembered
from audio.mimi_ir import VOICE, product_name
from lfm2_mm import arena
from lfm2_mm.compiled import register_width
from lfm2_mm.program import Operation, Program, Row, float_bits
from lfm2_mm.step_ir import Shape
from lfm2_mm.vector_ir import LANES

EPS = 1e-5  # of torch's layer norm
FEW = 16  # rows up to which a product waits for its weights
CHUNK = 48  # rows that a thread takes at once where there are many


class Past:
    """Keys and values of the last steps, written on by the newest state only.

    An older one, or one whose room is used up, goes on in a copy of what it still sees.
    """

    def __init__(self, config: MimiConfig) -> None:
        self.capacity = -(-2 * (config.window + config.steps) // LANES) * LANES
        shape = (config.layers, config.heads, self.capacity, config.width // config.heads)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.first = self.end = 0  # steps: of column 0, and behind the last one written

    def room_for(self, steps: int, config: MimiConfig) -> Past:
        """Where the next frame after `steps` steps goes."""
        if self.end == steps and steps + config.steps - self.first <= self.capacity:
            return self
        other = Past(config)
        other.first, other.end = max(0, steps - config.window + 1), steps
        count = steps - other.first
        begin = other.first - self.first
        other.keys[:, :, :count] = self.keys[:, :, begin : begin + count]
        other.values[:, :, :count] = self.values[:, :, begin : begin + count]
        return other


class Laid(NamedTuple):
    """A matrix as the product reads it, its outputs and inputs padded to whole lanes."""

    memory: np.ndarray
    bias: int  # an address
    inputs: int
    outputs: int
    half: bool

    @property
    def parts(self) -> int:
        return parts_of(self.outputs)


class CompiledMimi:
    """Weights of the decoding half, behind the Codec protocol."""

    def __init__(self, config: MimiConfig, tensors: dict[str, Tensor], *, half: bool) -> None:
        """tensors: the parameters of MimiDecoder, float32, which are used up.

        half: matrices that few rows pass are kept in bfloat16, which are 97 % of all bytes.
        """
        self.config, self.half = config, half
        self.rate, self.samples_per_frame = config.rate, config.samples_per_frame
        self.codebooks, self.codebook_size = config.codebooks, config.codebook_size
        dim = config.width // config.heads
        wide = register_width() == 64
        self.nbytes = 0  # of all weights that a frame reads
        self._program = Program(Shape(dim, 1, half=False, wide=wide), VOICE)
        self._tensors = tensors
        self._table, self._doubling = tensors.pop("table").numpy(), tensors.pop("doubling").numpy()
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        self._frequencies = np.float32(1) / np.float32(config.theta) ** exponents
        program, steps = self._program, config.steps
        self._turns = [program.row(2 * dim) for _ in range(steps)]
        self._positions = [program.counter() for _ in range(steps)]
        room = -(-config.window // LANES) * LANES
        self._scores = program.row(config.heads * room)
        self._attentions: list[list[Operation]] = []  # of each layer, of each step
        self._held: list[tuple[np.ndarray, np.ndarray]] = []  # first and last rows of a buffer
        x = self._buffer(config.kernel - 1, steps, config.width)
        self._x = x[config.kernel - 1 :]
        for layer in range(config.layers):
            self._block(f"layers.{layer}.", 4 * room)
        self._samples = self._sound(x)
        if tensors:
            raise ValueError(f"Mimi has no parameters {', '.join(sorted(tensors))}")

    # Protocol

    def start(self) -> Remembered:
        inputs = tuple(torch.zeros(last.shape) for _, last in self._held)
        return Remembered(torch.zeros(1, self.config.width), Past(self.config), inputs)

    def decode(self, codes: Tensor, state: Remembered) -> tuple[Tensor, Remembered]:
        """codes (codebooks, n) -> (1,920 n,) samples, none held back. Raises BadInput."""
        parts = [torch.zeros(0)]
        for frame in checked(codes, self.codebooks, self.codebook_size).T.numpy():
            samples, state = self._frame(frame, state)
            parts.append(samples)
        return torch.cat(parts), state

    def finish(self, state: Remembered) -> Tensor:
        """Nothing: every frame sounds at once."""
        return torch.zeros(0)

    def wave(self, codes: Tensor) -> Tensor:
        """codes (codebooks, n) -> (1,920 n,) float32 samples; memory grows with those alone."""
        return wave_of(self, codes)

    # One frame

    def _frame(self, codes: np.ndarray, state: Remembered) -> tuple[Tensor, Remembered]:
        rows = codes + self.codebook_size * np.arange(self.codebooks)
        code = self._table[rows].sum(0, dtype=np.float32)
        before = state.code.numpy()[0]
        with self._program.lock:
            self._x[:] = code * self._doubling[0] + before * self._doubling[1]
            for (first, _), held in zip(self._held, state.inputs, strict=True):
                first[:] = held.numpy()
            past = self._bind(state.attention, state.steps)
            self._program.run()
            past.end = state.steps + self.config.steps
            samples = torch.from_numpy(self._samples[:, 0].copy())
            inputs = tuple(torch.from_numpy(last.copy()) for _, last in self._held)
        return samples, Remembered(torch.from_numpy(code)[None], past, inputs, past.end)

    def _bind(self, past: Any, steps: int) -> Past:
        """Let attention read and write `past`, or the copy that `room_for` makes of it."""
        config = self.config
        store: Past = past.room_for(steps, config)
        dim = config.width // config.heads
        for number in range(config.steps):
            now = steps + number
            seen = max(0, now - config.window + 1)  # the first step that this one sees
            self._positions[number].values[0] = now - seen
            angles = np.float32(now) * self._frequencies
            cosines, sines = np.cos(angles), np.sin(angles)
            self._turns[number].values[:] = np.concatenate([cosines, cosines, -sines, sines])
            offset = 4 * dim * (seen - store.first)
            for layer, operations in enumerate(self._attentions):
                operations[number].set(
                    keys=int(store.keys[layer].ctypes.data) + offset,
                    values=int(store.values[layer].ctypes.data) + offset,
                    apart=4 * dim * store.capacity,
                )
        return store

    # The program

    def _block(self, at: str, room: int) -> None:
        """Attention and feed-forward, each added to x; their scales are put into the weights."""
        config, program, take = self.config, self._program, self._tensors.pop
        steps, width = config.steps, config.width
        normed = self._norm(at + "norm1.")
        qkv = program.row(3 * width * steps)
        self._product(normed, self._lay(take(at + "qkv.weight"), steps), steps, _address(qkv))
        mixed = program.row(width * steps)
        both = []
        for number in range(steps):
            both.append(program.add(
                "attend", qkv=qkv.address + 12 * width * number, q_weight=0, k_weight=0, eps=0,
                turns=self._turns[number].address, kv_heads=config.heads, keys=0, values=0, apart=0,
                position=self._positions[number].address, scores=self._scores.address, room=room,
                out=mixed.address + 4 * width * number,
            ))  # fmt: skip
        self._attentions.append(both)
        scaled = take(at + "scale1")[:, None] * take(at + "out_proj.weight")
        self._product(mixed, self._lay(scaled, steps), steps, _address(self._x), adds=True)
        normed = self._norm(at + "norm2.")
        wide = program.row(config.feed_forward * steps)
        self._product(normed, self._lay(take(at + "linear1.weight"), steps), steps, _address(wide))
        program.add("gelu", x=wide.address, size=wide.size, out=wide.address)
        scaled = take(at + "scale2")[:, None] * take(at + "linear2.weight")
        self._product(wide, self._lay(scaled, steps), steps, _address(self._x), adds=True)

    def _norm(self, at: str) -> Row:
        program, config = self._program, self.config
        out = program.row(config.width * config.steps, own=True)
        weight, bias = (program.floats(self._tensors.pop(at + p)) for p in ("weight", "bias"))
        program.add("layer_norm", x=_address(self._x), rows=config.steps, size=config.width,
                    weight=weight, bias=bias, eps=float_bits(EPS), out=out.address,
                    apart=out.apart)  # fmt: skip
        return out

    def _sound(self, x: np.ndarray) -> np.ndarray:
        """SEANet: a convolution; for each ratio a transposed one and a residual pair; the last.

        x: the buffer of the first. Returns the last one's (samples, 16), of which column 0 counts.
        """
        config, program = self.config, self._program
        channels, place, rows = config.filters << len(config.ratios), 0, config.steps
        y = self._convolution(place, x, rows, config.width, config.kernel, channels)
        for ratio in config.ratios:
            half = channels // 2
            held = self._activated(y, 1)
            z = self._convolution(place + 1, held, rows, channels, 2, half, stride=ratio)
            rows *= ratio
            held = self._activated(z, config.residual_kernel - 1)
            inner = self._convolution(
                place + 2, held, rows, half, config.residual_kernel, half // 2
            )
            program.add("elu", x=_address(inner), size=inner.size, out=_address(inner))
            self._convolution(place + 3, inner, rows, half // 2, 1, half, onto=z)
            y, channels, place = z, half, place + 3
        held = self._activated(y, config.last_kernel - 1)
        return self._convolution(place + 1, held, rows, channels, config.last_kernel, 1)

    def _activated(self, x: np.ndarray, lead: int) -> np.ndarray:
        """elu(x), with `lead` rows of the frame before it in front."""
        held = self._buffer(lead, *x.shape)
        self._program.add("elu", x=_address(x), size=x.size, out=_address(held[lead:]))
        return held

    def _convolution(
        self, place: int, x: np.ndarray, rows: int, inputs: int, kernel: int, outputs: int,
        *, stride: int = 1, onto: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Windows of `kernel` rows of x -> (stride · rows, outputs), channels in whole lanes."""
        at = f"convolutions.{place}.product."
        weight = self._tensors.pop(at + "weight").view(stride, outputs, kernel, inputs)
        bias = self._tensors.pop(at + "bias").view(stride, outputs)
        more, wide = _lanes(inputs) - inputs, _lanes(outputs)
        weight = torch.nn.functional.pad(weight, (0, more, 0, 0, 0, wide - outputs))
        bias = torch.nn.functional.pad(bias, (0, wide - outputs))
        laid = self._lay(weight.reshape(stride * wide, -1), rows, bias.flatten())
        out = self._array(stride * rows, wide) if onto is None else onto
        self._add_product(
            _address(x), 0, 4 * x.shape[1], laid, rows, _address(out), onto is not None
        )
        return out

    def _product(self, x: Row, laid: Laid, rows: int, out: int, adds: bool = False) -> None:
        self._add_product(x.address, x.apart, 4 * laid.inputs, laid, rows, out, adds)

    def _add_product(
        self, x: int, apart: int, row_apart: int, laid: Laid, rows: int, out: int, adds: bool
    ) -> None:
        self._program.add(
            product_name(laid.parts, laid.half), x=x, apart=apart, row_apart=row_apart, rows=rows,
            chunk=rows if rows <= FEW else CHUNK, inputs=laid.inputs,
            weights=int(laid.memory.ctypes.data), blocks=laid.outputs // (LANES * laid.parts),
            bias=laid.bias, out=out, out_apart=4 * laid.outputs, adds=int(adds),
        )  # fmt: skip

    def _lay(self, weight: Tensor, rows: int, bias: Tensor | None = None) -> Laid:
        """weight (outputs, inputs), both whole lanes, for a product of so many rows."""
        outputs, inputs = weight.shape
        half = self.half and rows <= FEW and parts_of(outputs) == 4
        laid = Laid(
            arena.weights.take((2 if half else 4) * weight.numel()),
            self._program.floats(torch.zeros(outputs) if bias is None else bias),
            inputs, outputs, half,
        )  # fmt: skip
        self.nbytes += laid.memory.nbytes
        blocks = weight.view(-1, LANES * laid.parts, inputs).transpose(1, 2)
        kind = np.int16 if half else np.float32
        values = blocks.bfloat16().view(torch.int16) if half else blocks
        laid.memory.view(kind)[:] = values.contiguous().numpy().reshape(-1)
        return cast("Laid", self._program.keep(laid))

    def _buffer(self, lead: int, rows: int, channels: int) -> np.ndarray:
        """(lead + rows, channels), whose last `lead` rows are the first of the next frame."""
        buffer = self._array(lead + rows, channels)
        if lead:
            self._held.append((buffer[:lead], buffer[rows:]))
        return buffer

    def _array(self, rows: int, channels: int) -> np.ndarray:
        row = self._program.row(rows * channels)
        return row.values.reshape(rows, channels)


def parts_of(outputs: int) -> int:
    """Registers of a block: outputs are whole blocks."""
    return next(parts for parts in (4, 2, 1) if outputs % (LANES * parts) == 0)


def compilable(config: MimiConfig) -> bool:
    """Whether this processor and these sizes allow a compiled frame."""
    sizes = (config.width // config.heads, config.width, config.feed_forward)
    return register_width() is not None and all(size % LANES == 0 for size in sizes)


def _lanes(size: int) -> int:
    return -(-size // LANES) * LANES


def _address(x: np.ndarray | Row) -> int:
    return x.address if isinstance(x, Row) else int(x.ctypes.data)
