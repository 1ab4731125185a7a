"""A recording of any length -> passages short enough to hear at once, cut where it is quietest.

Knows samples; holds one passage and one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from audio.resample import Resampler
from lfm2_mm.types import Audio

WINDOW_S = 0.1  # of which loudness is measured


def passages(pieces: Iterable[Audio], rate: int, longest_s: float) -> Iterator[np.ndarray]:
    """Float32 samples at `rate`, at most `longest_s` long; joined they are the whole recording.

    A recording that fits is one passage. Cuts lie in the second half of what may be taken, in the
    middle of the quietest tenth of a second.
    """
    longest = int(longest_s * rate)
    held = np.zeros(0, np.float32)
    for block in resampled(pieces, rate):
        held = np.concatenate((held, block))
        while len(held) > longest:
            end = quietest(held[:longest], longest // 2, int(WINDOW_S * rate))
            yield held[:end]
            held = held[end:]
    if len(held):
        yield held


def resampled(pieces: Iterable[Audio], rate: int) -> Iterator[np.ndarray]:
    """The pieces of one recording at another rate, as if it had been resampled whole."""
    resampler = state = None
    for piece in pieces:
        if resampler is None or state is None:
            resampler = Resampler(piece.rate, rate)
            state = resampler.start()
        block, state = resampler.push(piece.samples, state)
        yield block
    if resampler is not None and state is not None:
        yield resampler.finish(state)


def quietest(samples: np.ndarray, start: int, window: int) -> int:
    """The middle of the quietest `window` samples after `start`; the latest of equal ones."""
    tail = samples[start:].astype(np.float64)
    window = max(1, min(window, len(tail)))
    sums = np.concatenate(([0.0], np.cumsum(tail * tail)))
    energy = sums[window:] - sums[:-window]
    latest = len(energy) - 1 - int(np.argmin(energy[::-1]))
    return start + latest + window // 2
