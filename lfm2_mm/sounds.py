"""A file, bytes or an array -> mono float32 samples; and back to a file.

Knows containers, limits and what can go wrong; knows nothing of models and resampling.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from lfm2_mm.errors import BadInput, BeyondLimit, Unreadable
from lfm2_mm.types import Audio

if TYPE_CHECKING:
    from soundfile import SoundFile

MAX_SECONDS = 30 * 60  # of a recording held at once: 350 MB at 48 kHz; `pieces` has no limit
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
LOUDEST = 8.0  # float samples lie in -1..1; some converters overshoot a little
BLOCK = 1 << 20  # values decoded at a time, all channels together
SUFFIXES = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
READABLE = "WAV, FLAC, Ogg (Vorbis, Opus), MP3 or AIFF"
GUESSED_LENGTH = ("MP3",)  # formats whose header only estimates the number of samples
UNFINISHED = (0, 0x7FFFFFFF - 36, 0xFFFFFFFF, 0xFFFFFFFF - 36)  # data sizes of live recorders


def open_recording(source: object, rate: int | None = None) -> Audio:
    """The recording in a file, in bytes, in an open binary file, or in an array.

    Channels are averaged; the rate stays the source's own. Arrays are (n,) or (n, channels),
    integers of any width or floats in -1..1, and need `rate`. At most MAX_SECONDS. Raises
    Unreadable, BadInput.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, rate)
    if rate is not None:
        raise BadInput("a rate was given beside a file, which has its own; leave it out")
    with _opened(source) as (file, name):
        _refuse_long(name, file.frames / file.samplerate)
        held: list[np.ndarray] = []
        for block in _blocks(file, name):
            held.append(block)
            _refuse_long(name, sum(map(len, held)) / file.samplerate)
        return Audio(np.concatenate(held), file.samplerate)


def pieces(source: object, seconds: float = 10.0) -> Iterator[Audio]:
    """The same recording piece by piece, of any length, in the memory of one piece.

    A damaged end raises Unreadable only when it is reached.
    """
    with _opened(source) as (file, name):
        size = max(1, round(seconds * file.samplerate))
        rest = np.zeros(0, np.float32)
        for block in _blocks(file, name):
            rest = np.concatenate((rest, block))
            whole = len(rest) // size * size
            for start in range(0, whole, size):
                yield Audio(rest[start : start + size], file.samplerate)
            rest = rest[whole:]
        if len(rest):
            yield Audio(rest, file.samplerate)


def seconds_of(source: object) -> float:
    """Length of the recording as its header tells it; nothing is decoded. Raises Unreadable."""
    with _opened(source) as (file, _):
        return file.frames / file.samplerate


def save_recording(audio: Audio, path: str | os.PathLike[str]) -> Path:
    """Write a WAV (16 bit), FLAC, Ogg or MP3 file by its suffix; it appears whole or not at all.

    Samples beyond -1..1 are clipped. Raises BadInput for another suffix.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise BadInput(f"cannot write {path}: the name must end in {', '.join(SUFFIXES)}")
    import soundfile

    handle, fresh = tempfile.mkstemp(prefix=".lfm2-mm-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            samples = np.clip(audio.samples, -1.0, 1.0)
            soundfile.write(file, samples, audio.rate, format=kind)
        os.chmod(fresh, 0o666 & ~_umask())
        os.replace(fresh, path)
    except soundfile.SoundFileError as error:
        raise BadInput(f"cannot write {path} at {audio.rate} Hz as {kind}: {error}") from error
    finally:
        Path(fresh).unlink(missing_ok=True)
    return path


def _umask() -> int:
    """The process's file mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _opened(source: object) -> Iterator[tuple[SoundFile, str]]:
    """The decoder of a source and the source's name for messages."""
    import soundfile

    with _stream(source) as (stream, name):
        _refuse_cut_wav(stream, name)
        try:
            file = soundfile.SoundFile(stream)
        except (soundfile.SoundFileError, TypeError) as error:
            raise Unreadable(name, f"it is no recording of a known kind ({READABLE})") from error
        with file:
            if not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise Unreadable(name, _odd_rate(file.samplerate))
            if file.channels > MAX_CHANNELS:
                raise Unreadable(name, f"{file.channels} channels; at most {MAX_CHANNELS} are read")
            yield file, name


@contextmanager
def _stream(source: object) -> Iterator[tuple[BinaryIO, str]]:
    """The bytes of a source, and its name."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the recording's bytes"
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        with _file(name) as file:
            yield file, name
    elif isinstance(source, io.RawIOBase | io.BufferedIOBase) and source.seekable():
        yield cast(BinaryIO, source), str(getattr(source, "name", "the open file"))
    else:
        raise BadInput(
            f"a {type(source).__name__} is no recording; give a path, bytes, an open binary file, "
            "or an array with its rate"
        )


def _file(name: str) -> BinaryIO:
    """A nameless stream, since soundfile believes the suffix `.raw` of one with a name."""
    try:
        if Path(name).stat().st_size == 0:
            raise Unreadable(name, "the file is empty")
        return os.fdopen(os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")
    except (OSError, ValueError) as error:
        raise Unreadable(name, getattr(error, "strerror", None) or str(error)) from error


def _blocks(file: SoundFile, name: str) -> Iterator[np.ndarray]:
    """Mono float32 blocks to the end. Raises Unreadable when nothing, too little or NaN comes."""
    import soundfile

    size = max(1, BLOCK // file.channels)
    seen = 0
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise Unreadable(name, f"it is damaged after {seen} samples ({error})") from error
        if not len(block):
            break
        seen += len(block)
        yield _checked(block.mean(1, dtype=np.float32), name)
    if not seen:
        raise Unreadable(name, "it holds no samples")
    slack = seen // 20 + 4 * 1152 if file.format in GUESSED_LENGTH else 0
    if seen + slack < file.frames:
        raise Unreadable(name, f"it was cut off after {seen} of {file.frames} samples")


def _checked(samples: np.ndarray, name: str) -> np.ndarray:
    """float32 samples as they are, if each is a number of a sensible size."""
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unreadable(name, "it holds NaN or infinite samples")
    if max(-low, high) > LOUDEST:
        raise Unreadable(
            name, f"samples reach {max(-low, high):g}; floats lie in -1..1 (16-bit / 32768)"
        )
    return samples


def _refuse_long(name: str, seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise BeyondLimit(
            f"{name} lasts {seconds / 60:.0f} minutes; at most {MAX_SECONDS // 60} are held at "
            "once: cut it, or transcribe it, which reads piece by piece"
        )


def _odd_rate(rate: int) -> str:
    return f"its rate is {rate} Hz; {MIN_RATE} to {MAX_RATE} are read"


def _from_array(values: np.ndarray, rate: int | None) -> Audio:
    if rate is None or not MIN_RATE <= rate <= MAX_RATE:
        raise BadInput(f"the array's {_odd_rate(rate or 0)}; give rate=16000 or what it is")
    if values.ndim == 2 and values.shape[1] > MAX_CHANNELS:
        raise BadInput(f"an array {values.shape} was given; channels go last: (n, channels)")
    if values.ndim not in (1, 2) or not values.size:
        raise BadInput(f"an array {values.shape} was given; a recording is (n,) or (n, channels)")
    _refuse_long("the array", len(values) / rate)
    samples = _as_floats(values)
    if samples.ndim == 2:
        samples = samples.mean(1, dtype=np.float32)
    return Audio(_checked(np.ascontiguousarray(samples), "the array"), int(rate))


def _as_floats(values: np.ndarray) -> np.ndarray:
    """float32 in -1..1 from integers of any width (unsigned ones are centred) or floats."""
    kind = values.dtype.kind
    if kind == "f":
        return values.astype(np.float32)
    if kind not in "iu":
        raise BadInput(f"an array of {values.dtype} is no recording; integers or floats are")
    half = 1 << (8 * values.dtype.itemsize - 1)
    centred = values.astype(np.float64) - (half if kind == "u" else 0)
    return (centred / half).astype(np.float32)


def _refuse_cut_wav(stream: BinaryIO, name: str) -> None:
    """A WAV that ends before its header says so: libsndfile would silently return less."""
    start = stream.tell()
    try:
        missing = _missing_of_wav(stream)
    finally:
        stream.seek(start)
    if missing:
        raise Unreadable(name, f"it was cut off: the last {missing} bytes are missing")


def _missing_of_wav(stream: BinaryIO) -> int:
    """Bytes that the data chunk promises beyond the end of the file; 0 for anything unusual."""
    start = stream.tell()
    if stream.read(4) != b"RIFF" or len(stream.read(4)) < 4 or stream.read(4) != b"WAVE":
        return 0
    end = stream.seek(0, io.SEEK_END)
    stream.seek(start + 12)
    while len(head := stream.read(8)) == 8:
        kind, size = head[:4], struct.unpack("<I", head[4:])[0]
        if kind == b"data":
            return 0 if size in UNFINISHED else max(0, stream.tell() + size - end)
        stream.seek(size + size % 2, io.SEEK_CUR)
    return 0
