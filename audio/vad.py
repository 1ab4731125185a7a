"""Is this speech? A probability for each 32 ms, and from those where speech starts and ends.

Knows sound at 16 kHz; its clock is the number of samples. Two judges share one small protocol:
Silero's network (the silero-vad package, MIT) and a gate on loudness, for quiet rooms only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audio.turns import SpeechEnd, SpeechPause, SpeechResume, SpeechStart
from lfm2_mm.errors import BadInput, MissingExtra

RATE = 16_000  # Hz
WINDOW = 512  # samples a judgement
CONTEXT = 64  # samples before a window that Silero sees, too
HOP, REFLECTED = 128, 64  # of Silero's first layer
WEIGHTS = "silero_vad/data/silero_vad_16k.safetensors"
KINDS = ("auto", "silero", "energy")
Found = SpeechStart | SpeechPause | SpeechResume | SpeechEnd


class Judge(Protocol):
    """Says how probably a window is speech."""

    def start(self) -> Any:
        """What is remembered before the first window."""

    def probability(self, window: np.ndarray, state: Any) -> tuple[float, Any]:
        """(512,) float32 at 16 kHz -> 0..1, and the next state. States are values."""


@dataclass(frozen=True, eq=False)
class Remembered:
    context: Tensor  # (1, 64): the samples before the next window
    cell: tuple[Tensor, Tensor]  # (1, 128) each


class Silero:
    """Silero VAD 6 at 16 kHz: a spectrum, four convolutions, one recurrent cell."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.cell = tuple(weights[f"lstm_cell.{name}"] for name in names)

    @classmethod
    def open(cls) -> Silero:
        """The network in the installed package. Raises MissingExtra."""
        from safetensors.torch import load_file

        return cls(load_file(_weights_path()))

    def start(self) -> Remembered:
        nothing = torch.zeros(1, 128)
        return Remembered(torch.zeros(1, CONTEXT), (nothing, nothing))

    @torch.inference_mode()
    def probability(self, window: np.ndarray, state: Remembered) -> tuple[float, Remembered]:
        given = torch.from_numpy(window)[None]
        x = F.pad(torch.cat((state.context, given), 1), (0, REFLECTED), "reflect")
        spectrum = F.conv1d(x[:, None], self.weights["stft_conv.weight"], stride=HOP)
        real, imaginary = spectrum.chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
            weight, bias = self.weights[f"conv{layer}.weight"], self.weights[f"conv{layer}.bias"]
            x = F.conv1d(x, weight, bias, stride=stride, padding=1).relu()
        cell = torch.lstm_cell(x[..., 0], state.cell, *self.cell)
        weight, bias = self.weights["final_conv.weight"][..., 0], self.weights["final_conv.bias"]
        said = F.linear(cell[0].relu(), weight, bias)
        return said.sigmoid().item(), Remembered(given[:, -CONTEXT:].clone(), cell)


class EnergyGate:
    """Loud against what was quiet lately. Takes any noise for speech; for quiet rooms only."""

    above_db = 12.0  # over the floor: as likely speech as not
    slope_db = 2.0
    rise_db = 0.05  # of the floor in each window: 1.6 dB a second
    quietest_db, noisiest_db = -75.0, -35.0  # where the floor may lie

    def start(self) -> float:
        """The state is the floor in dB."""
        return self.noisiest_db

    def probability(self, window: np.ndarray, state: float) -> tuple[float, float]:
        level = 10 * math.log10(float(np.mean(np.square(window, dtype=np.float64))) + 1e-12)
        floor = min(state + self.rise_db, self.noisiest_db, max(level, self.quietest_db))
        return 1 / (1 + math.exp(-(level - floor - self.above_db) / self.slope_db)), floor


@dataclass(frozen=True)
class Hysteresis:
    """When probabilities become a start or an end of speech."""

    begin: float = 0.5
    hold: float = 0.35  # speech goes on above this
    windows: int = 2  # of speech in a row that make a start
    windows_loud: int = 3  # the same while a reply sounds
    silence_s: float = 0.5  # that ends a turn; 0.7 is patient
    pause_s: float | None = None  # silence that is told as a pause; None tells of none


class SpeechDetector:
    """Feed samples of any number; what became certain comes back. A reply sounds: set `loud`."""

    def __init__(self, judge: Judge, rule: Hysteresis | None = None) -> None:
        self.judge, self.rule = judge, rule or Hysteresis()
        self.loud = False
        self.silence_s = self.rule.silence_s  # that ends this pause; set it, speech resets it
        self.probability = 0.0  # of the latest window, to be shown
        self._state = judge.start()
        self._rest = np.zeros(0, np.float32)
        self._heard = 0  # samples judged
        self._speaking = self._paused = False
        self._run = 0  # windows in a row that sound like speech, before a start
        self._last = 0  # sample after the last window of speech

    def push(self, samples: np.ndarray) -> list[Found]:
        """float32 at 16 kHz, any number. Times are samples since the first."""
        held = np.concatenate((self._rest, samples.astype(np.float32, copy=False)))
        whole = len(held) // WINDOW * WINDOW
        self._rest = held[whole:].copy()
        found: list[Found] = []
        for start in range(0, whole, WINDOW):
            window = held[start : start + WINDOW]
            self.probability, self._state = self.judge.probability(window, self._state)
            self._heard += WINDOW
            found += self._speech() if self._speaking else self._silence()
        return found

    def _silence(self) -> list[Found]:
        self._run = self._run + 1 if self.probability >= self.rule.begin else 0
        if self._run < (self.rule.windows_loud if self.loud else self.rule.windows):
            return []
        self._speaking, self._last = True, self._heard
        began, self._run = self._heard - self._run * WINDOW, 0
        return [SpeechStart(began)]

    def _speech(self) -> list[Found]:
        if self.probability >= self.rule.hold:
            went_on = [SpeechResume(self._heard - WINDOW)] if self._paused else []
            self._last, self._paused = self._heard, False
            self.silence_s = self.rule.silence_s
            return [*went_on]
        silent = self._heard - self._last
        if silent >= self.silence_s * RATE:
            self._speaking = self._paused = False
            self.silence_s = self.rule.silence_s
            return [SpeechEnd(self._last)]
        if self.rule.pause_s is None or self._paused or silent < self.rule.pause_s * RATE:
            return []
        self._paused = True
        return [SpeechPause(self._last)]


def open_judge(kind: str = "auto") -> tuple[Judge, str]:
    """The judge of a kind of KINDS, and why in words. Raises BadInput, MissingExtra."""
    if kind not in KINDS:
        raise BadInput(f"a detector {kind!r} was asked; there are {', '.join(KINDS)}")
    if kind == "silero" or (kind == "auto" and installed()):
        return Silero.open(), "silero: tells speech from noise"
    why = "as asked" if kind == "energy" else "pip install 'lfm2-mm[live]' brings Silero's network"
    return EnergyGate(), f"energy: loudness alone, for quiet rooms; {why}"


def open_detector(
    kind: Literal["auto", "silero", "energy"] = "auto", rule: Hysteresis | None = None
) -> SpeechDetector:
    """A detector for one stream. Raises BadInput, MissingExtra."""
    return SpeechDetector(open_judge(kind)[0], rule)


def installed() -> bool:
    """Whether Silero's weights are here; nothing is imported."""
    try:
        _weights_path()
    except MissingExtra:
        return False
    return True


def _weights_path() -> Path:
    """The weights in the package, which itself would load code; so it is not imported."""
    try:
        found = [f for f in files("silero-vad") or () if f.as_posix() == WEIGHTS]
    except PackageNotFoundError:
        found = []
    if not found:
        raise MissingExtra("Silero's detector is not installed: pip install 'lfm2-mm[live]'")
    return Path(str(found[0].locate()))
