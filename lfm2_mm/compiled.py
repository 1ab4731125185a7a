"""LLVM text into machine code, and a team of threads that runs it. Knows no arithmetic.

The llvmlite wheel compiles for the processor at hand in a tenth of a second, so there is nothing to
cache and no compiler to install. Where that cannot be, `features` is empty and callers do without.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


@functools.cache
def features() -> frozenset[str]:
    """What this processor can, in LLVM's words; nothing where llvmlite is not installed."""
    if importlib.util.find_spec("llvmlite") is None:
        return frozenset()
    import llvmlite.binding as llvm

    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def register_width() -> int | None:
    """Bytes of a register that multiplies bytes: 64 with AVX-512 VNNI, 32 with AVX-VNNI."""
    found = features()
    if "avx512vnni" in found and "avx512bw" in found:
        return 64
    return 32 if "avxvnni" in found else None


class Machine:
    """Compiled functions of one module. Arguments: "p", an array's data, or "l", a number."""

    def __init__(self, text: str) -> None:
        import llvmlite.binding as llvm

        with _compiling:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            target = llvm.Target.from_default_triple().create_target_machine(
                cpu=llvm.get_host_cpu_name(),
                features=llvm.get_host_cpu_features().flatten(),
                opt=3,
            )
            module = llvm.parse_assembly(text)
            module.verify()
            builder = llvm.create_pass_builder(
                target, llvm.create_pipeline_tuning_options(speed_level=1)
            )
            builder.getModulePassManager().run(module, builder)
            self._engine = llvm.create_mcjit_compiler(module, target)  # owns the code
            self._engine.finalize_object()
            # Code stays for good. Two threads that are the first to want something both compile it,
            # one result is forgotten, and its code may be running then.
            _engines.append(self._engine)

    def address(self, name: str) -> int:
        return int(self._engine.get_function_address(name))


class Loop(Machine):
    """One compiled function, called with arrays and numbers."""

    def __init__(self, name: str, text: str, arguments: str) -> None:
        super().__init__(text)
        kinds = [ctypes.c_void_p if a == "p" else ctypes.c_int64 for a in arguments]
        self._call = ctypes.CFUNCTYPE(None, *kinds)(self.address(name))

    def __call__(self, *arguments: np.ndarray | int) -> None:
        self._call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


_compiling = threading.Lock()
_engines: list[Any] = []  # all there are
_teaming = threading.Lock()


class OpenMP(NamedTuple):
    """torch's own team of threads: another one beside it would fight it for the cores."""

    parallel: Callable[[int, int, int, int], None]  # function, argument, threads, flags
    team_size: int  # the address of a function that tells it


@functools.cache
def openmp() -> OpenMP | None:
    """The library behind torch's threads, if it is GNU's; None elsewhere than on Linux."""
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return None
    try:
        names = ctypes.CDLL(str(library))  # searches what it depends on, too
        parallel, team_size = names.GOMP_parallel, names.omp_get_num_threads
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return OpenMP(parallel, ctypes.cast(team_size, ctypes.c_void_p).value or 0)


@functools.cache
def give_way() -> int:
    """The address of the C library's function that lets another thread have the core, or 0."""
    try:
        library = ctypes.CDLL("kernel32" if os.name == "nt" else None)
        name = "SwitchToThread" if os.name == "nt" else "sched_yield"
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def run_team(function: int, argument: int, threads: int) -> None:
    """function(argument) in `threads` threads at once; returns when all have come back."""
    found = openmp() if threads > 1 else None
    if found is not None:
        found.parallel(function, argument, threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    if threads == 1:
        call(argument)
        return
    with _teaming:  # two teams at once could each hold threads that the other waits for
        others = [_pool(threads - 1).submit(call, argument) for _ in range(threads - 1)]
        call(argument)
        for other in others:
            other.result()


def run_pass(
    address: int,
    names: list[str],
    control: tuple[int, ...],
    fields: dict[str, torch.Tensor | int | None],
) -> None:
    """Call a compiled pass: its control numbers, then its fields in order; None is 0."""
    import torch

    values = [fields[name] for name in names]
    numbers = [v.data_ptr() if isinstance(v, torch.Tensor) else int(v or 0) for v in values]
    block = np.array([*control, *numbers], dtype=np.int64)
    run_team(address, block.ctypes.data, torch.get_num_threads())


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lfm2-mm")
