"""Samples -> bytes of a sound file while it grows, for a listener who does not wait for its end."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np

from lfm2_mm import wire

UNKNOWN = 0xFFFFFFFF  # the length of a WAV that is still growing, as live recorders write it
CONTAINERS = {"mp3": ("MP3", None), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
WHOLE = ("flac",)  # readers believe the length in its header, which is known at the end
Kind = Literal["mp3", "opus", "flac", "wav", "pcm"]


class Encoding:
    """One growing file of `kind`; what `push` and `finish` give, joined, is it."""

    def __init__(self, kind: str, rate: int) -> None:
        """kind: mp3, opus (in Ogg), flac, wav, or pcm (little-endian 16 bit, no header)."""
        self._header = _wav_header(rate) if kind == "wav" else b""
        self._whole, self._file = kind in WHOLE, None
        if kind in CONTAINERS:
            import soundfile

            self._tail = Tail()
            container, subtype = CONTAINERS[kind]
            self._file = soundfile.SoundFile(
                self._tail, "w", rate, 1, subtype, format=container,
                # Of constant rate: readers then tell the length from the number of bytes.
                compression_level=0.5 if kind == "mp3" else None,
                bitrate_mode="CONSTANT" if kind == "mp3" else None,
            )  # fmt: skip

    def push(self, samples: np.ndarray) -> bytes:
        """The bytes that became certain with these samples, (n,) float32 -1..1."""
        if self._file is None:
            header, self._header = self._header, b""
            return header + wire.write_pcm(samples)
        self._file.write(np.clip(samples, -1.0, 1.0))
        return b"" if self._whole else self._tail.take()

    def finish(self) -> bytes:
        """What is left."""
        if self._file is None:
            header, self._header = self._header, b""
            return header
        self._file.close()
        return self._tail.take()


class Tail(io.RawIOBase):
    """A file whose writer may go back, and whose reader takes each byte once, as it first was.

    Encoders go back when they close, to write lengths into headers; readers do without those.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = self._taken = 0

    def take(self) -> bytes:
        data = bytes(self._data[self._taken :])
        self._taken = len(self._data)
        return data

    def write(self, data: bytes) -> int:  # type: ignore[override]
        end = self._at + len(data)
        self._data[self._at : end] = data
        self._at = end
        return len(data)

    def read(self, count: int = -1) -> bytes:
        data = bytes(self._data[self._at :][: count if count >= 0 else None])
        self._at += len(data)
        return data

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = start + place
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True


def _wav_header(rate: int) -> bytes:
    riff = struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return riff + form + struct.pack("<4sI", b"data", UNKNOWN)
