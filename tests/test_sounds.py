"""Recordings in: every container, width and channel count; and everything that is none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lfm2_mm import Audio
from lfm2_mm.errors import BadInput, LfmError, Unreadable
from lfm2_mm.sounds import MAX_SECONDS, pieces, seconds_of

RATE = 16_000
WIDTHS = {"PCM_U8": 1 / 100, "PCM_16": 1e-4, "PCM_24": 1e-6, "FLOAT": 0.0, "DOUBLE": 1e-7}


def tone(n: int = RATE, rate: int = RATE) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(n) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", **options: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("subtype", WIDTHS)
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_every_width_and_channel_count(subtype: str, channels: int) -> None:
    """Channel c holds the tone times c, so their mean is known; the error is the width's step."""
    factors = np.arange(1, channels + 1) / channels
    values = tone()[:, None] * factors
    audio = Audio.open(wav(values, subtype=subtype))
    assert audio.rate == RATE and audio.samples.dtype == np.float32 and audio.seconds == 1.0
    step = WIDTHS[subtype] + 1e-6  # and the rounding of the mean
    np.testing.assert_allclose(audio.samples, tone() * factors.mean(), atol=step)


@pytest.mark.parametrize(("kind", "loss"), [("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_every_container(kind: str, loss: float, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(wav(tone(2 * rate, rate), rate, kind))
    audio = Audio.open(path)
    assert audio.rate == rate
    assert abs(len(audio.samples) - 2 * rate) <= (2304 if kind == "MP3" else 0)
    if kind != "MP3":  # its encoder delays by some thousand samples
        assert np.abs(audio.samples[5000:-5000] - tone(2 * rate, rate)[5000:-5000]).max() < loss
    assert abs(np.sqrt((audio.samples**2).mean()) - 0.4 / 2**0.5) < 0.01


def test_path_bytes_and_open_file_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(wav(tone(), subtype="FLOAT"))
    with path.open("rb") as file:
        given = [Audio.open(path), Audio.open(str(path)), Audio.open(path.read_bytes())]
        given.append(Audio.open(file))
    for audio in given:
        assert np.array_equal(audio.samples, tone())


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    for suffix in ("mp3", "raw", "txt", "au"):
        path = tmp_path / f"really_a_wav.{suffix}"
        path.write_bytes(wav(tone(), subtype="FLOAT"))
        assert np.array_equal(Audio.open(path).samples, tone())


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float32", "float64"])
def test_arrays(dtype: str) -> None:
    values = tone()
    if dtype.startswith("f"):
        given = values.astype(dtype)
    else:
        info = np.iinfo(dtype)
        centre = (info.max + 1) // 2 if dtype[0] == "u" else 0
        given = np.round(values * (info.max - centre) + centre).astype(dtype)
    audio = Audio.open(np.stack([given, given], 1), rate=RATE)
    np.testing.assert_allclose(audio.samples, values, atol=0.02 if "8" in dtype else 1e-4)


def test_one_sample_is_a_recording() -> None:
    assert Audio.open(wav(tone(1))).samples.shape == (1,)


BROKEN = {
    "nothing": (b"", "known kind"),
    "text": (b"hello, I am no recording. " * 99, "known kind"),
    "noise": (np.random.default_rng(0).bytes(9999), "known kind"),
    "header alone": (wav(tone())[:30], "known kind|no samples|cut off"),
    "no samples": (wav(tone(0)), "no samples"),
    "cut wav": (wav(tone())[:9000], "cut off"),
    "cut flac": (wav(tone(), kind="FLAC")[:2000], "damaged|cut off"),
    "cut ogg": (wav(tone(), kind="OGG")[:2000], "known kind|damaged|cut off"),
    "cut mp3": (wav(tone(5 * RATE), kind="MP3")[:4000], "cut off"),
    "NaN": (wav(np.where(np.arange(RATE) == 99, np.nan, tone()), subtype="FLOAT"), "NaN"),
    "infinite": (wav(np.where(np.arange(RATE) == 99, -np.inf, tone()), subtype="FLOAT"), "NaN"),
    "unscaled": (wav(tone() * 32768, subtype="FLOAT"), "samples reach"),
    "slow": (wav(tone(), 100), "rate is 100 Hz"),
    "crowd": (wav(np.zeros((5, 200)), kind="WAVEX"), "200 channels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_clear_error(name: str, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(Unreadable, match="cannot read") as caught:
            Audio.open(source)
        if source is path:
            assert str(path) in str(caught.value)
        if content:
            assert any(part in caught.value.reason for part in says.split("|"))
        with pytest.raises(Unreadable):
            list(pieces(source))


@pytest.mark.parametrize("bad", ["missing.wav", "", "a\0b", ".", None, 7, io.StringIO("x")])
def test_what_is_no_source(bad: object) -> None:
    with pytest.raises(BadInput):
        Audio.open(bad)


@pytest.mark.parametrize(
    ("array", "rate"),
    [
        (tone(), None),
        (tone(), 0),
        (np.zeros((2, 16_000), np.float32), RATE),  # channels first
        (np.zeros((2, 2, 2)), RATE),
        (np.zeros(0), RATE),
        (np.array([0.0, np.nan]), RATE),
        (tone() * 20_000, RATE),
        (np.array(["a"]), RATE),
        (np.zeros(3, bool), RATE),
        (np.zeros(3, complex), RATE),
        (np.zeros(16_000 * (MAX_SECONDS + 1), np.int8), RATE),
    ],
)
def test_arrays_that_are_no_recording(array: np.ndarray, rate: int | None) -> None:
    with pytest.raises(BadInput):
        Audio.open(array, rate=rate)


def test_a_live_recorders_open_end_is_read() -> None:
    """Data sizes of 0 and 2**32 - 1 mean that the length was not known when the file began."""
    content = bytearray(wav(tone(), subtype="PCM_16"))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert len(Audio.open(bytes(content)).samples) == RATE


def test_pieces_are_the_whole() -> None:
    content = wav(np.stack([tone(50_001)] * 2, 1), subtype="FLOAT")
    for seconds in (1e-4, 0.1, 1.0, 100.0):
        got = list(pieces(content, seconds))
        size = max(1, round(seconds * RATE))
        assert all(len(p.samples) == size for p in got[:-1])
        assert np.array_equal(np.concatenate([p.samples for p in got]), tone(50_001))


THREE_HOURS = """
import resource, soundfile, sys
import numpy as np
from lfm2_mm import Audio
from lfm2_mm.errors import BadInput
from lfm2_mm.sounds import pieces, seconds_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = sys.argv[1]
assert seconds_of(path) == 3 * 3600
try:
    Audio.open(path)
    raise SystemExit("three hours were held")
except BadInput as error:
    assert "180 minutes" in str(error) and "at most 30" in str(error)
assert sum(len(p.samples) for p in pieces(path, 30.0)) == 3 * 3600 * 2000
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 40_000, f"{grown} KiB for pieces of 30 seconds"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not on Windows")
def test_three_hours_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    minutes = np.zeros(2000 * 600, np.int16)
    with soundfile.SoundFile(path, "w", 2000, 1) as file:
        for _ in range(18):
            file.write(minutes)
    child = subprocess.run(
        [sys.executable, "-c", THREE_HOURS, str(path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "WAV"])
def test_saved_recordings_are_read_back(suffix: str, tmp_path: Path) -> None:
    path = Audio(tone() * 4, 24_000).save(tmp_path / f"out.{suffix}")
    back = Audio.open(path)
    assert back.rate == 24_000 and abs(back.seconds - RATE / 24_000) < 0.1
    assert back.samples.max() <= 1.1  # clipped, but for what the lossy formats add
    assert os.listdir(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o044


def test_saving_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.wav").write_bytes(b"kept")
    for name, rate in (("out.xyz", RATE), ("out", RATE), ("x.mp3", 12_345), ("old.wav", -1)):
        with pytest.raises(LfmError):
            Audio(tone(), rate).save(tmp_path / name)
    assert os.listdir(tmp_path) == ["old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"kept"


def test_real_recordings(data: Path) -> None:
    fixtures = data / "speech/fixtures"
    files = [*sorted(fixtures.glob("*.wav")), fixtures / "jfk.flac"]
    assert len(files) >= 7
    for path in files:
        audio = Audio.open(path)
        assert 0.5 < audio.seconds == pytest.approx(seconds_of(path))
        assert 0.01 < np.abs(audio.samples).max() <= 1
