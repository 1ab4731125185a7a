"""Where speech starts and ends: by Silero beside its own package, by loudness, in any cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audio import vad
from audio.resample import resample
from audio.turns import SpeechEnd, SpeechPause, SpeechResume, SpeechStart
from audio.vad import WINDOW, EnergyGate, Hysteresis, Silero, SpeechDetector, open_judge
from lfm2_mm import Audio
from lfm2_mm.errors import BadInput, MissingExtra

RATE = 16_000
needs_silero = pytest.mark.skipif(not vad.installed(), reason="silero-vad is not installed")


class Told:
    """A judge that was told what to say, window by window; its state is the number of windows."""

    def __init__(self, *probabilities: float) -> None:
        self.probabilities = probabilities

    def start(self) -> int:
        return 0

    def probability(self, window: np.ndarray, state: int) -> tuple[float, int]:
        assert window.shape == (WINDOW,)
        return self.probabilities[min(state, len(self.probabilities) - 1)], state + 1


def windows(count: int) -> np.ndarray:
    return np.zeros(count * WINDOW, np.float32)


def pushed(detector: SpeechDetector, samples: np.ndarray, size: int) -> list[object]:
    cuts = range(0, len(samples), size)
    return [event for at in cuts for event in detector.push(samples[at : at + size])]


def test_two_windows_start_and_half_a_second_ends() -> None:
    said = [0.1, 0.6, 0.1, 0.6, 0.6, 0.4, 0.4] + [0.1] * 30
    found = SpeechDetector(Told(*said)).push(windows(len(said)))
    assert found == [SpeechStart(3 * WINDOW), SpeechEnd(7 * WINDOW)]  # one window alone is none


def test_a_pause_that_is_too_short_ends_nothing() -> None:
    pause = [0.1] * 15  # 480 ms
    said = [0.9] * 3 + pause + [0.4] + pause + [0.1] * 20
    found = SpeechDetector(Told(*said)).push(windows(len(said)))
    assert found == [SpeechStart(0), SpeechEnd(19 * WINDOW)]


def test_while_a_reply_sounds_three_windows_are_needed() -> None:
    said = [0.9, 0.9, 0.1, 0.9, 0.9, 0.9]
    detector = SpeechDetector(Told(*said))
    detector.loud = True
    assert detector.push(windows(6)) == [SpeechStart(3 * WINDOW)]


def test_an_end_comes_as_soon_as_the_silence_is_long_enough() -> None:
    detector = SpeechDetector(Told(0.9, 0.9, 0.0), Hysteresis(silence_s=0.1))
    assert detector.push(windows(2)) == [SpeechStart(0)]
    assert detector.push(windows(3)) == []
    assert detector.push(windows(1)) == [SpeechEnd(2 * WINDOW)]  # after 128 ms


def test_pauses_are_told_where_that_is_asked_for() -> None:
    said = [0.9] * 3 + [0.0] * 6 + [0.9] * 2 + [0.0] * 20
    found = SpeechDetector(Told(*said), Hysteresis(pause_s=0.1)).push(windows(len(said)))
    assert found == [
        SpeechStart(0),
        SpeechPause(3 * WINDOW),
        SpeechResume(9 * WINDOW),
        SpeechPause(11 * WINDOW),
        SpeechEnd(11 * WINDOW),
    ]


def test_the_silence_of_one_pause_can_be_set() -> None:
    said = [0.9] * 3 + [0.0] * 20 + [0.9] * 3 + [0.0] * 20
    detector = SpeechDetector(Told(*said))
    detector.push(windows(4))
    detector.silence_s = 1.0
    assert detector.push(windows(22)) == []  # 640 ms would have been an end
    assert detector.push(windows(20)) == [SpeechEnd(26 * WINDOW)]  # the next pause is as ever
    detector = SpeechDetector(Told(*said))
    detector.push(windows(4))
    detector.silence_s = 0.05
    assert detector.push(windows(1)) == [SpeechEnd(3 * WINDOW)]


@pytest.mark.parametrize("size", [1, 7, 80, 1601, 100_000])
def test_cuts_change_nothing(size: int) -> None:
    said = [0.1, 0.9, 0.9] + [0.1] * 20 + [0.9] * 4
    found = pushed(SpeechDetector(Told(*said)), windows(len(said)), size)
    assert found == [SpeechStart(WINDOW), SpeechEnd(3 * WINDOW), SpeechStart(23 * WINDOW)]


def spoken(data: Path) -> tuple[np.ndarray, int, int]:
    """A real sentence between two seconds of faint noise; where it begins and ends."""
    audio = Audio.open(data / "speech/fixtures/how_old_is_the_brooklyn_bridge.wav")
    voice = resample(audio.samples, audio.rate, RATE)
    noise = 1e-4 * np.random.RandomState(0).standard_normal(len(voice) + 4 * RATE)
    samples = noise.astype(np.float32)
    samples[2 * RATE : 2 * RATE + len(voice)] += voice
    return samples, 2 * RATE, 2 * RATE + len(voice)


def weights_of(script: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    """The scripted model's own weights, which are of another training than the safetensors file's,
    under that file's names."""
    model = dict(script._model.named_parameters()) | dict(script._model.named_buffers())
    named = {"stft_conv.weight": model["stft.forward_basis_buffer"]}
    for part in ("weight", "bias"):
        for layer in range(4):
            named[f"conv{layer + 1}.{part}"] = model[f"encoder.{layer}.reparam_conv.{part}"]
        for gate in ("ih", "hh"):
            named[f"lstm_cell.{part}_{gate}"] = model[f"decoder.rnn.{part}_{gate}"]
        named[f"final_conv.{part}"] = model[f"decoder.decoder.2.{part}"]
    return named


@needs_silero
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_silero_equals_its_own_package(data: Path) -> None:
    from silero_vad import load_silero_vad

    theirs = load_silero_vad()
    ours = Silero(weights_of(theirs))
    state, samples = ours.start(), spoken(data)[0]
    got, expected = [], []
    for at in range(0, len(samples) - WINDOW, WINDOW):
        window = samples[at : at + WINDOW]
        probability, state = ours.probability(window, state)
        got.append(probability)
        expected.append(theirs(torch.from_numpy(window), RATE).item())
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert max(got) > 0.9 and min(got) < 0.05


@needs_silero
def test_a_state_is_a_value(data: Path) -> None:
    judge, samples = Silero.open(), spoken(data)[0][2 * RATE :]
    _, early = judge.probability(samples[:WINDOW], judge.start())
    once, _ = judge.probability(samples[WINDOW : 2 * WINDOW], early)
    judge.probability(samples[5 * WINDOW : 6 * WINDOW], early)
    assert judge.probability(samples[WINDOW : 2 * WINDOW], early)[0] == once


@pytest.mark.parametrize("kind", [pytest.param("silero", marks=needs_silero), "energy"])
def test_a_real_sentence_is_found(kind: str, data: Path) -> None:
    samples, begin, end = spoken(data)
    found = SpeechDetector(open_judge(kind)[0], Hysteresis(silence_s=0.7)).push(samples)
    assert [type(event) for event in found] == [SpeechStart, SpeechEnd]
    assert begin - 0.1 * RATE < found[0].at < begin + 0.6 * RATE
    assert begin + RATE < found[1].at < end + 0.2 * RATE


@needs_silero
def test_silero_takes_no_noise_for_speech() -> None:
    random = np.random.RandomState(1)
    t = np.arange(10 * RATE) / RATE
    for sound in (
        0.05 * random.standard_normal(len(t)),
        0.3 * np.sin(2 * np.pi * (100 * t + 150 * t**2)),
        0.2 * np.sign(np.sin(2 * np.pi * 50 * t)),
    ):
        assert SpeechDetector(Silero.open()).push(sound.astype(np.float32)) == []


def test_the_gate_is_still_in_silence_and_in_steady_noise() -> None:
    noise = 0.003 * np.random.RandomState(2).standard_normal(10 * RATE)
    for sound in (np.zeros(10 * RATE), noise):
        assert SpeechDetector(EnergyGate()).push(sound.astype(np.float32)) == []


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_judge("energy")[1].startswith("energy: loudness alone")
    with pytest.raises(BadInput, match="auto, silero, energy"):
        open_judge("ears")
    monkeypatch.setattr(vad, "WEIGHTS", "silero_vad/data/not_there.safetensors")
    assert isinstance(open_judge("auto")[0], EnergyGate)
    with pytest.raises(MissingExtra, match="pip install"):
        open_judge("silero")
