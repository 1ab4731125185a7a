"""Pick device, dtype and threads once, and keep the reason as text. Knows processors, no models."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lfm2_mm.errors import BadInput

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "fp32", "bf16", "int8", "int4"]
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "fp32", "bf16", "int8", "int4")
PACKED = ("int8", "int4")


@dataclass(frozen=True)
class Choice:
    """How to run: `weights` is fp32, bf16, int8 or int4; `reason` says why, for a person."""

    device: str
    weights: Literal["fp32", "bf16", "int8", "int4"]
    threads: int
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of activations: packed weights take float32 activations."""
        import torch

        return torch.bfloat16 if self.weights == "bf16" else torch.float32

    @property
    def packed(self) -> bool:
        """Whether matrices are packed as int8 or int4."""
        return self.weights in PACKED

    def for_many_rows(self) -> Choice:
        """The same for parts that see many rows at once: 4 bits spare reading, which is not what
        they wait for, so they take int8."""
        return replace(self, weights="int8") if self.weights == "int4" else self


@functools.cache
def processor_features() -> frozenset[str]:
    """What the processor can do: avx2, avx512_vnni, avx512_bf16, amx_int8, asimddp, …

    Linux names them in /proc/cpuinfo; elsewhere torch names the widest vector set.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                return frozenset(line.partition(":")[2].split())
    import torch

    names = {
        "avx2": torch.cpu._is_avx2_supported(),
        "avx512f": torch.cpu._is_avx512_supported(),
        "avx512_vnni": torch.cpu._is_vnni_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_tile": torch.cpu._is_amx_tile_supported(),
    }
    return frozenset(name for name, here in names.items() if here)


def has_exact_int8() -> bool:
    """Whether int8 products are summed in 32 bits (VNNI, AMX, or Arm's dot product)."""
    return bool(processor_features() & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def processor_name() -> str:
    """The processor as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """Threads for arithmetic: torch's own count (real cores, or OMP_NUM_THREADS), as far as this
    process may use them; the second half of a hyper-threaded core only waits for the first."""
    import torch

    given = torch.get_num_threads() if _given is None else _given
    return max(1, min(given, usable_cores()))


def choose(device: str = "auto", dtype: str = "auto") -> Choice:
    """Settle device, weights' dtype and thread count. Raises BadInput for what is not here."""
    import torch

    if device not in DEVICES or dtype not in DTYPES:
        raise BadInput(
            f"device {device!r} with dtype {dtype!r} was asked; "
            f"devices are {', '.join(DEVICES)} and dtypes {', '.join(DTYPES)}"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device 'cuda' was asked, but torch finds none; use --device cpu or auto")
    if device == "cuda" or (device == "auto" and dtype not in PACKED and torch.cuda.is_available()):
        if dtype in PACKED:
            raise BadInput(f"{dtype} runs on the CPU only; on cuda use --dtype bf16 or fp32")
        weights: Literal["fp32", "bf16"] = "fp32" if dtype == "fp32" else "bf16"
        return Choice("cuda", weights, thread_count(), f"cuda is there; {weights} weights")
    return _choose_cpu(dtype)


def _choose_cpu(dtype: str) -> Choice:
    threads = thread_count()
    features = processor_features()
    cores = f"{threads} threads, one for each real core or as OMP_NUM_THREADS says"
    if dtype in PACKED and not int8_works():
        raise BadInput(f"{dtype} was asked, but this torch has no oneDNN int8 product; use fp32")
    if dtype == "int4":
        return Choice("cpu", "int4", threads, f"{_why_int4()}; {cores}")
    if dtype != "auto":
        return Choice("cpu", dtype, threads, f"{dtype} as asked; {cores}")  # type: ignore[arg-type]
    if has_exact_int8() and int8_works():
        unit = sorted(features & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})[0]
        why = f"int8: the processor has {unit}, so int8 reads a quarter of fp32's bytes"
        return Choice("cpu", "int8", threads, f"{why} and multiplies faster; {cores}")
    if features & {"avx512_bf16", "amx_bf16"}:
        return Choice("cpu", "bf16", threads, f"bf16: the processor multiplies it itself; {cores}")
    why = "fp32: the processor has neither int8 dot products nor bf16 arithmetic"
    return Choice("cpu", "fp32", threads, f"{why}; {cores}")


def _why_int4() -> str:
    from lfm2_mm.compiled import register_width

    if register_width() is None:
        return "int4 as asked: small, but slow here, since the processor has no byte products"
    return "int4 as asked: half the bytes of int8 are read for each token, and quality falls"


@functools.cache
def int8_works() -> bool:
    """Whether torch's int8 product is there and right: tried once on a small matrix."""
    import torch

    from lfm2_mm.linear import Int8Linear

    weight = torch.linspace(-1, 1, 32 * 64).reshape(32, 64)
    x = torch.linspace(-2, 2, 3 * 64).reshape(3, 64)
    try:
        y = Int8Linear(weight)(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((y - x @ weight.T).abs().max() < 0.02 * (x @ weight.T).abs().max())


_threads_set: int | None = None
_given: int | None = None  # torch's own count, before it was first changed


def set_threads(count: int) -> None:
    """Give torch `count` threads; a second call with the same number does nothing."""
    global _threads_set, _given
    if _threads_set == count:
        return
    import torch

    if _given is None:
        _given = torch.get_num_threads()
    torch.set_num_threads(count)
    _threads_set = count
