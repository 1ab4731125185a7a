"""What parts.npz was made of: clips as (seconds, Hz, seed), numbers of frames."""

from __future__ import annotations

CLIPS = {
    "long": (2.03, 16_000, 1),
    "shortest": (0.02, 16_000, 2),
    "odd": (0.31, 44_100, 3),
    "telephone": (0.5, 8_000, 4),
}
EVERY = 5  # only each fifth row (or sample) is kept
MIMI_FRAMES = 40
DETOKENIZED = 25  # frames; what sounds depends on up to 17 before it
