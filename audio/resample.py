"""Another sample rate, for a whole recording or block by block. Knows arrays; knows no files.

Windowed-sinc interpolation with the definition of torchaudio.functional.resample's defaults (Hann
window, 6 zero crossings a side, rolloff 0.99). Every output sample is a sum over a few inputs at a
place of its own, so a stream's result does not depend on how it was cut.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
AT_ONCE = 1 << 14  # output samples computed together


@dataclass(frozen=True, eq=False)
class Heard:
    """Where a stream is: samples seen and made, and those that later outputs still need."""

    tail: np.ndarray  # float32; its last sample is number `seen` - 1
    seen: int
    made: int


class Resampler:
    """From `rate` to `to` Hz. Holds the filter and nothing else: states go in and come out."""

    def __init__(self, rate: int, to: int) -> None:
        if min(rate, to) < 1:
            raise ValueError(f"rates are {rate} and {to} Hz")
        shared = math.gcd(rate, to)
        self.old, self.new = rate // shared, to // shared
        self.reach, self.kernel = _kernel(self.old, self.new)

    def start(self) -> Heard:
        return Heard(np.zeros(self.reach - 1, np.float32), 0, 0)

    def push(self, block: np.ndarray, state: Heard) -> tuple[np.ndarray, Heard]:
        """Samples (n,) -> the outputs that can be known by now, and the next state."""
        seen = state.seen + len(block)
        if self.old == self.new:
            return block, Heard(state.tail, seen, seen)
        # The last output whose inputs all lie before `seen`.
        ready = max(state.made, -(-(seen - self.reach) * self.new // self.old))
        return self._advance(np.concatenate((state.tail, block)), seen, ready, state.made)

    def finish(self, state: Heard) -> np.ndarray:
        """What is left when the stream ends; in all ceil(samples · to / rate) are made."""
        total = -(-state.seen * self.new // self.old)
        if total <= state.made:
            return np.zeros(0, np.float32)
        ended = np.concatenate((state.tail, np.zeros(self.reach, np.float32)))
        return self._advance(ended, state.seen + self.reach, total, state.made)[0]

    def _advance(
        self, held: np.ndarray, seen: int, ready: int, made: int
    ) -> tuple[np.ndarray, Heard]:
        """Outputs `made` to `ready` from `held`, whose last sample is number `seen` - 1."""
        first = seen - len(held)  # the number of held[0]
        out = np.empty(ready - made, np.float32)
        for start in range(made, ready, AT_ONCE):
            numbers = np.arange(start, min(start + AT_ONCE, ready), dtype=np.int64)
            left = numbers * self.old // self.new - self.reach + 1 - first
            windows = sliding_window_view(held, self.kernel.shape[1])[left]
            taps = self.kernel[numbers % self.new]
            out[start - made : start - made + len(numbers)] = np.einsum("ij,ij->i", windows, taps)
        needed = ready * self.old // self.new - self.reach + 1
        return out, Heard(held[needed - first :].copy(), seen, ready)


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """(n,) float32 at `rate` -> (ceil(n · to / rate),) float32 at `to` Hz."""
    resampler = Resampler(rate, to)
    head, state = resampler.push(samples, resampler.start())
    return np.concatenate((head, resampler.finish(state)))


@functools.lru_cache(maxsize=16)
def _kernel(old: int, new: int) -> tuple[int, np.ndarray]:
    """(reach, float32 (new, 2 · reach)): row p weighs the inputs around output p, p + new, …

    Column j of a row belongs to the input floor(place) - reach + 1 + j, where `place` is where the
    output lies among the inputs. (Reference in open source: torchaudio, functional.py.)
    """
    cutoff = min(1.0, new / old) * ROLLOFF  # in half cycles an input sample
    reach = math.ceil(ZERO_CROSSINGS / cutoff) + 1
    beyond = (np.arange(new, dtype=np.int64) * old % new) / new  # of the place, after its floor
    t = (np.arange(2 * reach) - reach + 1 - beyond[:, None]) * cutoff
    t = np.clip(t, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(t * math.pi / ZERO_CROSSINGS / 2) ** 2
    return reach, (np.sinc(t) * window * cutoff).astype(np.float32)
