"""The index survives kill -9 at random moments, a full disk, and flipped bits in every file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ROUNDS = int(os.environ.get("LFM2_MM_KILLS", "30"))  # some hundred take minutes: by the variable


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here: workers cannot be killed")
def test_killed_at_random_moments_it_is_sound_and_goes_on() -> None:
    """See tests/crash.py for what is asserted after each kill."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--rounds", str(ROUNDS), "--seed", "7"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(job["rounds"] for job in told.values()) == ROUNDS
    assert sum(job["killed"] for job in told.values()) > ROUNDS / 2
