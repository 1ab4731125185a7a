"""Machine code outlives the object that made it: another thread may be running it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lfm2_mm.compiled import features

FORGOTTEN = """
import ctypes, gc
from lfm2_mm.compiled import Machine

addresses = []
for number in range(8):
    text = f'define i64 @f() {{ ret i64 {number} }}'
    addresses.append(Machine(text).address('f'))
    gc.collect()
found = [ctypes.CFUNCTYPE(ctypes.c_int64)(address)() for address in addresses]
assert found == list(range(8)), found
"""


@pytest.mark.skipif(not features(), reason="llvmlite is not installed")
def test_code_can_be_run_after_its_machine_is_forgotten() -> None:
    """In a process of its own: what is wrong here ends the process."""
    child = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
