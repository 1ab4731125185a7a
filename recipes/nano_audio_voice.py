"""The voice nano-audio learns: flite's slt, taken apart into frames that a code can stand for.

flite speaks (its C library, Debian's libflite1), WORLD (pyworld) measures pitch and spectral
envelope, and what is kept of 80 ms is `Frames`: whole pitch periods, six envelopes of 48 bands, and
whether each sixth is voiced. `sound` turns frames back into a wave. That wave is a local function
of the frames, with no phase left open, which is what lets a small network learn it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

RATE = 24_000
FRAME = 1920  # samples
PARTS = 6  # envelopes a frame
HOP = FRAME // PARTS
BANDS, TOP = 48, 8000.0  # flite's voices end at 8 kHz
SIZE = 1280  # of the transforms
FLOOR = 7.5  # nats of amplitude under the loudest band ever
CHIRP = 0.002  # s: delay of a pulse's lowest part against its highest, so that it is no click
PERIODS = (8, 24)  # of pitch in a frame: 100 to 300 Hz


@dataclass(frozen=True)
class Frames:
    """n frames of 80 ms of one voice."""

    periods: np.ndarray  # (n,) int, pitch periods in the frame; 0 where nothing is voiced
    voiced: np.ndarray  # (n, 6) bool
    envelope: np.ndarray  # (n, 6, 48) float32, log amplitude by band

    def __len__(self) -> int:
        return len(self.periods)

    def __getitem__(self, at: slice) -> Frames:
        return Frames(self.periods[at], self.voiced[at], self.envelope[at])


def joined(parts: list[Frames]) -> Frames:
    return Frames(
        np.concatenate([p.periods for p in parts]),
        np.concatenate([p.voiced for p in parts]),
        np.concatenate([p.envelope for p in parts]),
    )


class Wave(ctypes.Structure):
    """flite's cst_wave (include/cst_wave.h)."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("samples", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_short)),
    )


class Flite:
    """One flite voice through its C library: text -> samples and the words' times."""

    START = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
    END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"

    def __init__(self, voice: str = "slt") -> None:
        load = ctypes.CDLL
        self._lib = load("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        for name in ("usenglish", "cmulex"):
            load(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        voices = load(f"libflite_cmu_us_{voice}.so.1", mode=ctypes.RTLD_GLOBAL)
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        signatures = {
            "flite_synth_text": (pointer, text, pointer),
            "utt_relation": (pointer, pointer, text),
            "relation_head": (pointer, pointer),
            "item_next": (pointer, pointer),
            "ffeature_string": (text, pointer, text),
            "ffeature_float": (ctypes.c_float, pointer, text),
            "utt_wave": (ctypes.POINTER(Wave), pointer),
            "delete_utterance": (None, pointer),
        }
        for name, (result, *arguments) in signatures.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._lib.flite_init()
        register = getattr(voices, f"register_cmu_us_{voice}")
        register.restype, register.argtypes = pointer, [text]
        self._voice = register(None)

    def say(self, text: str) -> tuple[np.ndarray, int, list[tuple[str, float, float]]]:
        """Samples (n,) float32, their rate, and (word, start, end) in seconds."""
        utterance = self._lib.flite_synth_text(text.encode(), self._voice)
        wave = self._lib.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.data, (wave.samples,)).astype(np.float32) / 32768
        rate, words = wave.rate, list(self._words(utterance))
        self._lib.delete_utterance(utterance)
        return samples, rate, words

    def _words(self, utterance: int) -> Iterator[tuple[str, float, float]]:
        lib = self._lib
        item = lib.relation_head(lib.utt_relation(utterance, b"Word"))
        while item:
            start, end = (lib.ffeature_float(item, path) for path in (self.START, self.END))
            yield lib.ffeature_string(item, b"name").decode(), start, end
            item = lib.item_next(item)


@cache
def band_centres() -> np.ndarray:
    """(48,) Hz, even on the mel scale, from the lowest to 8 kHz."""
    top = 2595 * np.log10(1 + TOP / 700)
    mels = np.linspace(top / (BANDS + 1), top, BANDS)
    return 700 * (10 ** (mels / 2595) - 1)


@cache
def _spread() -> np.ndarray:
    """(48, 641): bands -> bins of the transform, linear between centres; nothing above 8 kHz."""
    hertz = np.arange(SIZE // 2 + 1) * RATE / SIZE
    return np.stack([np.interp(hertz, band_centres(), row) for row in np.eye(BANDS)])


def analyse(samples: np.ndarray, rate: int) -> Measured:
    """WORLD's pitch and envelope of a recording, every 5 ms."""
    import pyworld
    import torch
    from torchaudio.functional import resample

    wide = resample(torch.from_numpy(samples), rate, RATE).numpy().astype(np.float64)
    coarse, times = pyworld.dio(wide, RATE, f0_floor=90, f0_ceil=320)
    pitch = pyworld.stonemask(wide, coarse, times, RATE)
    power = pyworld.cheaptrick(wide, pitch, times, RATE)
    hertz = np.linspace(0, RATE / 2, power.shape[1])
    log = 0.5 * np.log(power + 1e-12)
    edges = np.searchsorted(hertz, band_centres())
    smooth = np.cumsum(np.pad(log, ((0, 0), (1, 0))), axis=1)
    low, high = np.maximum(edges - 2, 0), np.minimum(edges + 3, log.shape[1])
    bands = (smooth[:, high] - smooth[:, low]) / (high - low)
    return Measured(times, pitch, bands.astype(np.float32))


@dataclass(frozen=True)
class Measured:
    times: np.ndarray  # (t,) s
    pitch: np.ndarray  # (t,) Hz, 0 where unvoiced
    bands: np.ndarray  # (t, 48) log amplitude

    def frames(self, start: float, end: float) -> Frames:
        """What was said from `start` to `end`, stretched to whole frames, two at least."""
        count = max(2, round((end - start) * RATE / FRAME))
        at = start + (end - start) * (np.arange(count * PARTS) + 0.5) / (count * PARTS)
        nearest = np.clip(np.searchsorted(self.times, at), 0, len(self.times) - 1)
        pitch = self.pitch[nearest].reshape(count, PARTS)
        columns = [np.interp(at, self.times, band) for band in self.bands.T]
        envelope = np.stack(columns, -1).reshape(count, PARTS, BANDS).astype(np.float32)
        voiced = pitch > 0
        mean = pitch.sum(1) / np.maximum(voiced.sum(1), 1)
        periods = np.round(mean * FRAME / RATE).astype(int)
        periods = np.where(voiced.any(1), np.clip(periods, *PERIODS), 0)
        return Frames(periods, voiced, envelope)


def silence(count: int) -> Frames:
    low = np.full((count, PARTS, BANDS), -20.0, np.float32)
    return Frames(np.zeros(count, int), np.zeros((count, PARTS), bool), low)


@cache
def _noise() -> np.ndarray:
    """One frame of noise, the same in every frame."""
    return np.random.default_rng(5).standard_normal(FRAME).astype(np.float32)


@cache
def _delay() -> np.ndarray:
    """(641,) phase of the chirp: its group delay falls evenly from 2 ms at 0 Hz to 0 at 8 kHz."""
    hertz = np.arange(SIZE // 2 + 1) * RATE / SIZE
    below = np.minimum(hertz, TOP)
    return np.exp(-2j * np.pi * CHIRP * (below - below**2 / (2 * TOP)))


def sound(frames: Frames) -> np.ndarray:
    """(n * 1920,) float32: pulses where voiced, frozen noise where not, shaped by the envelopes."""
    amplitude = np.exp(frames.envelope.reshape(-1, BANDS) @ _spread())  # (n * 6, 641)
    amplitude[:, int(TOP * SIZE / RATE) :] = 0
    out = np.zeros(len(frames) * FRAME + 2 * SIZE, np.float32)
    _add_pulses(out, frames, amplitude)
    _add_noise(out, frames, amplitude)
    return out[SIZE:-SIZE]


def _add_pulses(out: np.ndarray, frames: Frames, amplitude: np.ndarray) -> None:
    shapes = np.fft.irfft(amplitude * _delay(), SIZE).astype(np.float32)
    shapes = np.roll(shapes, SIZE // 2, axis=1)
    for n, periods in enumerate(frames.periods):
        for k in range(periods):
            at = round(k * FRAME / periods)
            if frames.voiced[n, at // HOP]:
                shape = shapes[n * PARTS + at // HOP] * np.sqrt(FRAME / periods)
                begin = SIZE + n * FRAME + at - SIZE // 2
                out[begin : begin + SIZE] += shape


def _add_noise(out: np.ndarray, frames: Frames, amplitude: np.ndarray) -> None:
    window = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)
    noise = np.tile(_noise(), 3)
    for part, voiced in enumerate(frames.voiced.reshape(-1)):
        if voiced:
            continue
        begin = FRAME + part % PARTS * HOP - HOP // 2
        middle = np.zeros(SIZE, np.float32)  # room on both sides: the filter has no delay
        middle[HOP : 3 * HOP] = noise[begin : begin + 2 * HOP] * window
        grain = np.fft.rfft(middle)
        at = SIZE + part * HOP - HOP // 2 - HOP
        out[at : at + SIZE] += np.fft.irfft(grain * amplitude[part], SIZE).astype(np.float32)
