"""int8 matrices in oneDNN's own layout, in memory of ours. Knows bytes, no arithmetic.

oneDNN keeps a packed matrix as it likes and hides it. On processors with byte products it likes
`BA16a64b4a`: for each 64 outputs [inputs / 4][64][4] bytes, all padded with zeros to 64, and after
them minus the sum of each output's weights (int32). That suits our one-row product as well. So a
matrix is laid out here and given to oneDNN as if it were its own: one copy serves both, in huge
pages. That the layout is this one is not believed but tried, once for each size, on a random
matrix; where it is another one, oneDNN packs for itself, and rows alone go through it, too.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm2_mm import arena

BLOCK = 64  # outputs, and inputs, that the layout pads to
NEEDED = (
    "aoti_torch_get_data_ptr",
    "aoti_torch_create_tensor_from_blob_v2",
    "aoti_torch_dtype_int8",
    "aoti_torch_device_type_cpu",
    "aoti_torch_layout__mkldnn",
)


class Packed(NamedTuple):
    """A packed matrix: what oneDNN takes, and its bytes where we know how they lie."""

    matrix: Tensor
    memory: np.ndarray | None
    outputs: int
    inputs: int

    @property
    def blocks(self) -> int:
        return -(-self.outputs // BLOCK)

    @property
    def groups(self) -> int:
        """Fours of inputs, padded."""
        return padded(self.inputs) // 4

    @property
    def address(self) -> int:
        assert self.memory is not None
        return int(self.memory.ctypes.data)

    @property
    def sums(self) -> int:
        """The address of minus the sums of weights."""
        return self.address + padded(self.outputs) * padded(self.inputs)


def pack(weight: Tensor) -> Packed:
    """`weight` (outputs, inputs) int8."""
    outputs, inputs = weight.shape
    description = known_layout(outputs, inputs)
    if description is None:
        return Packed(torch.ops.onednn.qlinear_prepack(weight, None), None, outputs, inputs)
    size = padded(outputs) * padded(inputs) + 4 * padded(outputs)
    memory = arena.weights.take(size)
    lay_out(weight.numpy(), memory)
    return Packed(adopt(memory, outputs, inputs, description), memory, outputs, inputs)


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def lay_out(weight: np.ndarray, memory: np.ndarray) -> None:
    """Write (outputs, inputs) int8 into zeroed memory, in the layout above."""
    outputs, inputs = weight.shape
    blocks, groups = padded(outputs) // BLOCK, padded(inputs) // 4
    bytes_of_weights = padded(outputs) * padded(inputs)
    laid = memory[:bytes_of_weights].view(np.int8).reshape(blocks, groups, BLOCK, 4)
    for block in range(blocks):
        rows = weight[BLOCK * block : BLOCK * (block + 1)]
        whole = np.zeros((BLOCK, groups * 4), np.int8)
        whole[: len(rows), :inputs] = rows
        laid[block] = whole.reshape(BLOCK, groups, 4).transpose(1, 0, 2)
    sums = memory[bytes_of_weights:].view(np.int32)
    sums[:outputs] = -weight.sum(axis=1, dtype=np.int32)


@functools.cache
def known_layout(outputs: int, inputs: int) -> bytes | None:
    """oneDNN's description of a packed matrix of this size, if it lies as described above."""
    names = torch_names()
    if names is None or min(outputs, inputs) < 1:
        return None
    generator = torch.Generator().manual_seed(0)
    trial = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    try:
        matrix = torch.ops.onednn.qlinear_prepack(trial, None)
        size = torch.ops.mkldnn._nbytes(matrix)
        description = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(matrix).tolist())
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    expected = np.zeros(padded(outputs) * padded(inputs) + 4 * padded(outputs), np.uint8)
    if size != len(expected):
        return None
    lay_out(trial.numpy(), expected)
    address = ctypes.c_void_p()
    handle = ctypes.c_void_p(matrix._cdata)  # a Tensor in C++ is the address of its contents
    if names.aoti_torch_get_data_ptr(ctypes.byref(handle), ctypes.byref(address)):
        return None
    found = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))
    return description if np.array_equal(found, expected) else None


def adopt(memory: np.ndarray, outputs: int, inputs: int, description: bytes) -> Tensor:
    """A packed matrix over `memory`, which has to live as long as it."""
    names = torch_names()
    assert names is not None
    sizes, handle = (ctypes.c_int64 * 2)(inputs, outputs), ctypes.c_void_p()
    strides = (ctypes.c_int64 * 2)(1, inputs)
    failed = names.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.ctypes.data), ctypes.c_int64(2), sizes, strides, ctypes.c_int64(0),
        names.aoti_torch_dtype_int8(), names.aoti_torch_device_type_cpu(), 0, ctypes.byref(handle),
        names.aoti_torch_layout__mkldnn(), description, ctypes.c_int64(len(description)),
    )  # fmt: skip
    if failed:
        raise RuntimeError("torch did not take a matrix in its own layout")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    held = capsule(handle, None, None)
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(held)


@functools.cache
def torch_names() -> ctypes.CDLL | None:
    """torch's C interface for compiled models, which is kept stable; None where it is not there."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            library = ctypes.CDLL(str(folder / name))
            return library if all(hasattr(library, wanted) for wanted in NEEDED) else None
    return None
