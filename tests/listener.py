"""A live conversation that a test can watch: its recorded samples, its detector, its listener."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import audio
from audio.conversation import Manner
from audio.session import Said, Session, SessionEvent
from audio.speech import Speech
from audio.vad import Found
from lfm2_mm.types import AudioChunk, Sampling
from tests import tiny_audio
from tests.plain_codec import PlainCodec

RATE = 16_000
GREEDY = Manner(sound=Sampling(temperature=0.0), steps=60)
SOUND = tiny_audio.recording(4.0, RATE, 1)


def tiny_speech(folder: Path) -> Speech:
    """A checkpoint that says some words, with a codec without memory."""
    tiny_audio.speech_folder(folder, seed=3, loud={tiny_audio.IM_END: 0.1}, **tiny_audio.SMALL)
    speech = audio.open(folder, device="cpu", dtype="fp32")
    speech.codec = PlainCodec()  # type: ignore[assignment]
    return speech


class Told:
    """Finds speech where it is told to."""

    def __init__(self, *events: Found) -> None:
        self.events, self.seen, self.loud, self.silence_s = list(events), 0, False, 0.5

    def push(self, samples: np.ndarray) -> list[Found]:
        self.seen += len(samples)
        due = [event for event in self.events if event.at <= self.seen]
        self.events = self.events[len(due) :]
        return due


class Listener:
    """Reads events and reports what it played: all of it at once, or nothing."""

    def __init__(self, session: Session, *, plays: bool = True) -> None:
        self.session, self.plays = session, plays
        self.events: list[SessionEvent] = []
        self.samples: dict[int, int] = {}
        self.news = asyncio.Event()

    async def run(self) -> None:
        async for event in self.session:
            self.events.append(event)
            if isinstance(event, Said) and isinstance(event.event, AudioChunk):
                count = self.samples.get(event.turn, 0) + len(event.event.samples)
                self.samples[event.turn] = count
                if self.plays:
                    await self.session.played(event.turn, count)
            self.news.set()

    async def until(self, wanted: type, count: int = 1) -> None:
        while sum(isinstance(e, wanted) for e in self.events) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 60)

    async def chunks(self, turn: int, count: int) -> None:
        while len(chunks_of(self.events, turn)) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 60)


def chunks_of(events: Sequence[SessionEvent], turn: int) -> list[AudioChunk]:
    said = [e.event for e in events if isinstance(e, Said) and e.turn == turn]
    return [event for event in said if isinstance(event, AudioChunk)]


async def heard(session: Session, start: float, end: float, size: int = 1600) -> None:
    for at in range(int(start * RATE), int(end * RATE), size):
        await session.hear(SOUND[at : min(at + size, int(end * RATE))])


def at(seconds: float) -> int:
    return int(seconds * RATE)
