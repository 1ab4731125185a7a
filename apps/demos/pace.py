"""How long looking and reading will take, from how long they took. Knows numbers only."""

from __future__ import annotations

from collections import deque

import numpy as np

KEPT = 24  # measurements
FADES = 0.7  # the weight of one beside the next: a machine that becomes faster is soon believed


class Pace:
    """A line through the latest measurements of (tokens, seconds)."""

    def __init__(self) -> None:
        self._points: deque[tuple[int, float]] = deque(maxlen=KEPT)

    def learn(self, tokens: int, seconds: float) -> None:
        """`tokens` took `seconds`."""
        if tokens > 0:
            self._points.append((tokens, seconds))

    def predict(self, tokens: int) -> float | None:
        """Seconds for `tokens`; 0 for none, None before anything was measured."""
        if tokens == 0:
            return 0.0
        if not self._points:
            return None
        x, y = np.array(self._points, float).T
        weights = FADES ** np.arange(len(x))[::-1]
        middle, height = np.average(x, weights=weights), np.average(y, weights=weights)
        if np.ptp(x) < 0.2 * x.max():  # too much alike for a slope
            return float(tokens * height / middle)
        spread = np.sum(weights * (x - middle) ** 2)
        slope = max(0.0, np.sum(weights * (x - middle) * (y - height)) / spread)
        return max(0.0, float(height + slope * (tokens - middle)))
