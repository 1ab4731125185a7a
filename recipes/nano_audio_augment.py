"""Makes clean clips sound as at a counter: other speeds, rooms, noise, microphones."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from nano_audio_clips import RATE, Clip
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import fftconvolve


def augment(
    clip: Clip, draw: random.Random, noises: Sequence[Clip], rooms: Sequence[np.ndarray]
) -> tuple[np.ndarray, float, float]:
    """Samples (n,) float32 with silence around them; how much slower they became, and how many
    seconds later they begin."""
    slower = draw.uniform(0.88, 1.14) if draw.random() < 0.8 else 1.0
    samples = stretched(clip.samples, slower)
    if draw.random() < 0.3:
        samples = fftconvolve(samples, draw.choice(rooms))[: len(samples)]
    if draw.random() < 0.25:
        samples = band_limited(samples, draw.uniform(2500, 4000))
    if draw.random() < 0.3:
        samples = tilted(samples, draw.uniform(-0.5, 0.5))
    lead, tail = quiet(draw), quiet(draw)
    samples = np.pad(samples, (lead, tail))
    if draw.random() < 0.6:
        samples = with_noise(samples, draw.choice(noises).samples, draw.uniform(5, 30), draw)
    loudest = float(np.abs(samples).max()) + 1e-6
    return samples * (draw.uniform(0.05, 0.9) / loudest), slower, lead / RATE


def quiet(draw: random.Random) -> int:
    """Samples before or after the words: cut close, or as a listener that waits for pauses cuts."""
    return round(RATE * draw.uniform(0.0, draw.choice((0.0, 0.0, 0.1, 0.3, 0.8))))


def stretched(samples: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times as long, pitch and all."""
    places = np.arange(0, len(samples) - 1, 1 / factor)
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


def band_limited(samples: np.ndarray, top: float) -> np.ndarray:
    size = next_fast_len(len(samples), real=True)
    spectrum = rfft(samples, size)
    spectrum[int(top * size / RATE) :] = 0
    return irfft(spectrum, size)[: len(samples)]


def tilted(samples: np.ndarray, amount: float) -> np.ndarray:
    """A darker (positive) or brighter microphone."""
    return np.append(samples[:1], samples[1:] + amount * samples[:-1]).astype(np.float32)


def clicks(draw: random.Random) -> Clip:
    """Ticks, knocks and sneezes: one to six bursts of noise that die away, each in a band of its
    own."""
    noise = np.random.default_rng(draw.getrandbits(32))
    samples = np.zeros(round(RATE * draw.uniform(0.4, 3.0)), np.float32)
    time = np.arange(len(samples)) / RATE
    for _ in range(draw.randint(1, 6)):
        rise, fall = draw.uniform(0.001, 0.05), 0.005 * 40 ** draw.random()
        since = np.maximum(time - draw.uniform(0.0, time[-1]), 0.0)
        shape = (1 - np.exp(-since / rise)) * np.exp(-since / fall)
        burst = band_limited(noise.standard_normal(len(time)) * shape, draw.uniform(500, 8000))
        samples += tilted(burst, draw.uniform(-0.9, 0.9)) * draw.uniform(0.2, 1.0)
    return Clip(samples, ())


def with_noise(
    samples: np.ndarray, noise: np.ndarray, decibels: float, draw: random.Random
) -> np.ndarray:
    """Noise from a random place, so loud that speech stands `decibels` above it."""
    start = draw.randrange(len(noise))
    part = np.take(noise, np.arange(start, start + len(samples)), mode="wrap")
    power, other = float((samples**2).mean()), float((part**2).mean())
    if other < 1e-10:
        return samples
    return samples + part * np.sqrt(power / other / 10 ** (decibels / 10)).astype(np.float32)
