"""Samples -> log-mel frames, whole or block by block. Knows the front end's numbers; no models.

After NVIDIA NeMo's AudioToMelSpectrogramPreprocessor in evaluation (no dither), as LFM2-Audio's
chat state calls it: all 1 + n // hop frames are kept, and the last one, which has no right half of
its own, is zero after normalisation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audio.config import MelConfig
from lfm2_mm.errors import BadInput

PREEMPHASIS = 0.97
FLOOR = 2.0**-24  # added before the logarithm
EPSILON = 1e-5  # added to the deviation
BREAK = 1000.0  # Hz, where the mel scale bends
AT_ONCE = 4096  # frames computed together: 41 s


@dataclass(frozen=True, eq=False)
class Heard:
    """Where a stream is: the emphasised samples that later frames still need."""

    tail: Tensor  # (n,) float32, about as long as a transform
    last: Tensor  # (1,) the sample before the next one, as it came
    seen: int = 0
    made: int = 0  # frames


class LogMel:
    """The front end of one configuration. Holds window and filters; states go in and come out."""

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        beside = config.n_fft - config.window  # the window lies in the middle of the transform
        window = torch.hann_window(config.window, periodic=False)
        self.window = F.pad(window, (beside // 2, beside - beside // 2))
        self.filters = filterbank(config)
        self.left = config.n_fft // 2  # samples of a frame before its centre

    def __call__(self, samples: np.ndarray | Tensor) -> Tensor:
        """(n,) float32 at the configuration's rate -> (1 + n // hop, features), normalised.

        Raises BadInput for clips of fewer than two whole frames.
        """
        frames, state = self.push(samples, self.start())
        frames = torch.cat((frames, self.finish(state)))
        return self.normalise(frames, state.seen)

    @property
    def shortest(self) -> int:
        """Samples of the shortest clip that can be normalised."""
        return 2 * self.config.hop

    def start(self) -> Heard:
        return Heard(torch.zeros(self.left), torch.zeros(1))

    def push(self, block: np.ndarray | Tensor, state: Heard) -> tuple[Tensor, Heard]:
        """Samples (n,) -> (k, features) frames before normalisation that are complete by now."""
        block = torch.as_tensor(block, dtype=torch.float32)
        if not len(block):
            return torch.zeros(0, self.config.features), state
        emphasised = torch.cat((state.last, block))
        emphasised = emphasised[1:] - PREEMPHASIS * emphasised[:-1]
        held = torch.cat((state.tail, emphasised))
        seen = state.seen + len(block)
        ready = max(0, (seen - (self.config.n_fft - self.left)) // self.config.hop + 1)
        frames, held = self._frames(held, ready - state.made)
        return frames, Heard(held, block[-1:].clone(), seen, max(ready, state.made))

    def finish(self, state: Heard) -> Tensor:
        """The frames left when the stream ends: silence follows."""
        total = 1 + state.seen // self.config.hop
        held = torch.cat((state.tail, torch.zeros(self.config.n_fft)))
        return self._frames(held, total - state.made)[0]

    def normalise(self, frames: Tensor, samples: int) -> Tensor:
        """Mean 0 and deviation 1 of each feature over the whole frames of `samples` samples.

        This needs the whole clip; it costs less than one frame's filters. Frames after the whole
        ones become zero. Raises BadInput for clips of fewer than two whole frames.
        """
        whole = samples // self.config.hop
        if whole < 2:
            raise BadInput(
                f"the recording lasts {1000 * samples / self.config.sample_rate:g} ms; hearing "
                f"takes at least {1000 * self.shortest / self.config.sample_rate:g} ms"
            )
        deviation, mean = torch.std_mean(frames[:whole], 0)
        normal = (frames - mean) / (deviation + EPSILON)
        normal[whole:] = 0.0
        return normal

    def _frames(self, held: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` frames and the samples that are still needed after them."""
        hop, size = self.config.hop, self.config.n_fft
        if count <= 0:
            return torch.zeros(0, self.config.features), held
        windows = held.unfold(0, size, hop)[:count]
        parts = [self._log_mel(part) for part in windows.split(AT_ONCE)]
        return torch.cat(parts), held[count * hop :].clone()

    def _log_mel(self, windows: Tensor) -> Tensor:
        power = torch.fft.rfft(windows * self.window).abs().square()
        return torch.log(power @ self.filters.T + FLOOR)


def log_mel(samples: np.ndarray | Tensor, config: MelConfig) -> Tensor:
    """The normalised frames of a whole clip, (1 + n // hop, features). Raises BadInput."""
    return _front_end(config)(samples)


@functools.lru_cache(maxsize=8)
def _front_end(config: MelConfig) -> LogMel:
    return LogMel(config)


def filterbank(config: MelConfig) -> Tensor:
    """(features, n_fft // 2 + 1) triangles on Slaney's mel scale, each of the same area.

    As librosa.filters.mel computes them; transformers' copy of it takes a second to import.
    """
    highest = config.sample_rate / 2
    frequencies = np.linspace(0, highest, config.n_fft // 2 + 1)
    corners = hertz(np.linspace(0, mels(highest), config.features + 2))[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (corners[2:] - corners[:-2])
    return torch.from_numpy(triangles.astype(np.float32))


def mels(frequency: float) -> float:
    """Hz -> mel: linear to 1 kHz, logarithmic above."""
    if frequency < BREAK:
        return frequency * 3 / 200
    return 15 + 27 * np.log(frequency / BREAK) / np.log(6.4)


def hertz(scale: np.ndarray) -> np.ndarray:
    """mel -> Hz."""
    return np.where(scale < 15, scale * 200 / 3, BREAK * 6.4 ** ((scale - 15) / 27))
