"""SVOX Pico in process (Debian's libttspico0 and libttspico-data): two English voices."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

RATE = 16_000
LANGUAGES = {"en-US": "lh0", "en-GB": "kh0"}  # and the name of its voice
FOLDER = Path("/usr/share/pico/lang")
MEMORY = 20_000_000  # bytes
BUSY, IDLE = 201, 200  # picodefs.h
PIECE = 128  # bytes


class Pico:
    """One of its voices."""

    def __init__(self, language: str) -> None:
        self._lib = ctypes.CDLL("libttspico.so.0")
        self._memory = ctypes.create_string_buffer(MEMORY)
        self._system, name = ctypes.c_void_p(), ctypes.create_string_buffer(200)
        self._must(self._lib.pico_initialize(self._memory, MEMORY, ctypes.byref(self._system)))
        self._must(self._lib.pico_createVoiceDefinition(self._system, b"voice"))
        for part in ("ta", f"{LANGUAGES[language]}_sg"):
            path, found = FOLDER / f"{language}_{part}.bin", ctypes.c_void_p()
            self._must(
                self._lib.pico_loadResource(self._system, bytes(path), ctypes.byref(found)), path
            )
            self._must(self._lib.pico_getResourceName(self._system, found, name))
            self._must(self._lib.pico_addResourceToVoiceDefinition(self._system, b"voice", name))

    def say(self, text: str, *, speed: int, pitch: int) -> np.ndarray:
        """Samples (n,) float32 at 16 kHz; speed and pitch in percent."""
        told = f'<speed level="{speed}"><pitch level="{pitch}">{text}</pitch></speed>'
        engine, data = ctypes.c_void_p(), told.encode() + b"\0"
        self._must(self._lib.pico_newEngine(self._system, b"voice", ctypes.byref(engine)))
        taken, parts = ctypes.c_int16(), []
        while data:
            self._must(
                self._lib.pico_putTextUtf8(
                    engine, data, ctypes.c_int16(len(data)), ctypes.byref(taken)
                )
            )
            data = data[taken.value :]
            parts += self._waiting(engine)
        self._must(self._lib.pico_disposeEngine(self._system, ctypes.byref(engine)))
        return np.concatenate(parts).astype(np.float32) / 32768

    def _waiting(self, engine: ctypes.c_void_p) -> list[np.ndarray]:
        """What can be said so far."""
        count, kind, status = ctypes.c_int16(), ctypes.c_int16(), BUSY
        buffer, parts = ctypes.create_string_buffer(PIECE), []
        while status == BUSY:
            status = self._lib.pico_getData(
                engine, buffer, PIECE, ctypes.byref(count), ctypes.byref(kind)
            )
            parts.append(np.frombuffer(buffer.raw[: count.value], np.int16))
        if status != IDLE:
            raise RuntimeError(f"pico stopped with {status}")
        return parts

    @staticmethod
    def _must(status: int, what: object = "") -> None:
        if status:
            raise RuntimeError(f"pico refused {what or 'a call'} with {status}")
