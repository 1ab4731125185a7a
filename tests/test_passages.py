"""Long recordings in passages: nothing lost, nothing doubled, cut where it is quiet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from audio.passages import passages, quietest
from audio.resample import resample
from lfm2_mm.types import Audio

RATE = 1000


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    random = np.random.default_rng(1)
    return random.standard_normal(round(seconds * rate)).astype(np.float32)


def in_pieces(samples: np.ndarray, size: int, rate: int = RATE) -> Iterator[Audio]:
    for start in range(0, len(samples), size):
        yield Audio(samples[start : start + size], rate)


@pytest.mark.parametrize("size", [1, 7, 999, 1000, 2500, 100_000])
@pytest.mark.parametrize("seconds", [0.001, 0.5, 3.0, 3.001, 11.7])
def test_joined_they_are_the_recording(seconds: float, size: int) -> None:
    samples = noise(seconds)
    found = list(passages(in_pieces(samples, max(size, len(samples) // 50)), RATE, 3.0))
    assert np.array_equal(np.concatenate(found), samples)
    assert all(0 < len(passage) <= 3 * RATE for passage in found)
    assert all(len(passage) >= 1.5 * RATE for passage in found[:-1])


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_what_fits_is_one_passage(seconds: float) -> None:
    assert len(list(passages(in_pieces(noise(seconds), 100), RATE, 3.0))) == 1


def test_cuts_lie_in_the_pauses() -> None:
    samples = noise(8.0)
    for pause in (2.2, 4.5, 6.9):  # the first passage ends in 1.5 to 3 s, and so on
        samples[round((pause - 0.1) * RATE) : round((pause + 0.1) * RATE)] *= 0.001
    ends = np.cumsum([len(p) for p in passages(in_pieces(samples, 100), RATE, 3.0)]) / RATE
    assert np.abs(ends[:3] - (2.2, 4.5, 6.9)).max() < 0.1


def test_the_cuts_do_not_depend_on_the_pieces() -> None:
    samples = noise(9.0)
    lengths = {
        tuple(map(len, passages(in_pieces(samples, size), RATE, 2.0))) for size in (50, 333, 9000)
    }
    assert len(lengths) == 1


def test_another_rate_is_as_if_resampled_whole() -> None:
    samples = noise(5.0, 44_100)
    found = np.concatenate(list(passages(in_pieces(samples, 1601, 44_100), 16_000, 1.0)))
    assert np.array_equal(found, resample(samples, 44_100, 16_000))


def test_nothing_is_no_passage() -> None:
    assert list(passages(iter(()), RATE, 3.0)) == []


def test_the_quietest_place() -> None:
    samples = np.ones(100, np.float32)
    samples[60:70] = 0
    assert quietest(samples, 50, 10) == 65
    assert quietest(np.zeros(100, np.float32), 50, 10) == 95  # the latest of equal ones
    assert quietest(np.ones(3, np.float32), 1, 10) == 2


def test_one_passage_is_held_at_a_time() -> None:
    """An hour, made piece by piece: the first passage comes before the second minute is read."""
    read = 0

    def hour() -> Iterator[Audio]:
        nonlocal read
        for _ in range(360):
            read += 1
            yield Audio(noise(10.0), RATE)

    next(passages(hour(), RATE, 30.0))
    assert read <= 6
