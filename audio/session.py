"""Live conversation: samples in, events out, one reply at a time in a thread of its own.

The clock is the number of samples heard, so a recording runs as fast as it can be read. Knows
detectors only by their protocol, and no microphone, socket or loudspeaker.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from audio import turns
from audio.conversation import Conversation
from audio.turns import CancelReply, FlushPlayback, SpeechEnd, SpeechStart, StartReply, Turn
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Audio, AudioChunk
from lfm2_mm.types import Event as ReplyEvent

RATE = 16_000  # Hz of what is heard
PRE_ROLL_S = 0.3  # heard before the start of speech that belongs to it
UTTERANCE_S = 30.0  # then the turn ends, whether the speaker does or not
AHEAD_S = 2.0  # of sound that may be sent before it is played
WAITING = 64  # events that may wait for the reader


class Detector(Protocol):
    """Finds speech in the stream of the microphone."""

    loud: bool  # set while a reply sounds: more is then needed to begin

    def push(self, samples: np.ndarray) -> list[SpeechStart | SpeechEnd]:
        """float32 at 16 kHz, any number -> what became certain with them."""


@dataclass(frozen=True)
class Said:
    """Something of reply `turn`."""

    turn: int
    event: ReplyEvent


@dataclass(frozen=True)
class Flush:
    """Stop playing reply `turn`, and tell by `played` how far it came."""

    turn: int


@dataclass(frozen=True)
class Forgot:
    """Oldest turns were dropped to make room."""

    turns: int


@dataclass(frozen=True)
class Failed:
    """Reply `turn` could not be made; the session goes on."""

    turn: int
    error: LfmError


SessionEvent = SpeechStart | SpeechEnd | Said | Flush | Forgot | Failed


class Session:
    """Feed `hear` and `played`, read with `async for`; `end` when nothing more is heard."""

    def __init__(
        self, conversation: Conversation, detector: Detector, *, reports: bool = True
    ) -> None:
        """reports: whether `played` will be told; without, what was read counts as played."""
        self.conversation, self.detector, self.reports = conversation, detector, reports
        self.turn = Turn()
        self.heard = 0  # samples: the clock
        self._kept = np.zeros(0, np.float32)  # the last samples; the last is number `heard` - 1
        self._speech_from = 0
        self._sent: dict[int, int] = {}  # samples of each reply that may still be cut
        self._played: dict[int, int] = {}
        self._out: deque[SessionEvent] = deque()
        self._changed = asyncio.Condition()
        self._work: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self._ended = False
        self._answered: int | None = None  # which reply the conversation's last one is
        self._broken: BaseException | None = None  # a mistake of ours, for the reader

    async def hear(self, samples: np.ndarray) -> None:
        """The next samples of the microphone, float32 at 16 kHz."""
        self.heard += len(samples)
        self._kept = np.concatenate((self._kept, samples))
        keep = UTTERANCE_S + PRE_ROLL_S if self.turn.state == "hearing" else 2 * PRE_ROLL_S
        self._kept = self._kept[-int(keep * RATE) - len(samples) :]
        self.detector.loud = self.turn.sounding
        for event in self.detector.push(samples):
            await self._on(event)
        if self.turn.state == "hearing" and self.heard - self._speech_from > UTTERANCE_S * RATE:
            await self._on(SpeechEnd(self.heard))

    async def played(self, number: int, samples: int) -> None:
        """The listener has heard so many samples of reply `number`."""
        if number not in self._sent:
            return
        self._played[number] = max(self._played.get(number, 0), min(samples, self._sent[number]))
        async with self._changed:
            self._changed.notify_all()
        await self._check_played_out()

    async def end(self) -> None:
        """Nothing more is heard: what is said now is answered, then the events end."""
        await self._on(SpeechEnd(self.heard))
        if self._work is not None:
            await asyncio.wait({self._work})
        await self._put(None)

    async def close(self) -> None:
        """Stop at once."""
        await self._halt()
        await self._put(None)

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._out or self._ended)
                if not self._out:
                    break
                event = self._out.popleft()
                self._changed.notify_all()
            if not self.reports and isinstance(event, Said) and isinstance(event.event, AudioChunk):
                heard = self._played.get(event.turn, 0) + len(event.event.samples)
                await self.played(event.turn, heard)
            yield event
        if self._broken is not None:
            raise self._broken

    # ---- one event, and what it asks for --------------------------------------------------

    async def _on(self, event: turns.Event) -> None:
        before = self.turn
        self.turn, actions = turns.step(before, event)
        if isinstance(event, SpeechStart) and before.state != "hearing":
            self._speech_from = event.at
            await self._put(event)
        elif isinstance(event, SpeechEnd) and before.state == "hearing":
            await self._put(event)
        for action in actions:
            if isinstance(action, StartReply):
                end = event.at if isinstance(event, SpeechEnd) else self.heard
                self._start(action.number, self._utterance(end))
            elif isinstance(action, CancelReply):
                await self._halt()
            elif isinstance(action, FlushPlayback):
                await self._put(Flush(action.number))

    def _utterance(self, end: int) -> Audio:
        """What was said from a little before its start."""
        first = self.heard - len(self._kept)
        start = max(self._speech_from - int(PRE_ROLL_S * RATE) - first, 0)
        return Audio(self._kept[start : max(end - first, start)].copy(), RATE)

    def _start(self, number: int, said: Audio) -> None:
        self._stop = threading.Event()
        loop = asyncio.get_running_loop()
        self._work = asyncio.create_task(self._reply(number, said, self._stop, loop))

    async def _reply(
        self, number: int, said: Audio, stop: threading.Event, loop: asyncio.AbstractEventLoop
    ) -> None:
        def wait_for(coroutine: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        def work() -> None:
            try:
                self._cut_back()
                self._make_room(said, lambda event: wait_for(self._put(event, stop)))
                with self.conversation.reply(said) as reply:
                    self._answered = number
                    for event in reply:
                        if stop.is_set():
                            return
                        wait_for(self._say(number, event, stop))
            except LfmError as error:
                wait_for(self._put(Failed(number, error), stop))

        self._sent = {n: s for n, s in self._sent.items() if n == number - 1} | {number: 0}
        try:
            await asyncio.to_thread(work)
        except Exception as error:  # noqa: BLE001  (raised where the events are read)
            self._broken = error
            await self._put(None)
        if not stop.is_set():
            await self._on(turns.Generated(number))
            await self._check_played_out()

    def _cut_back(self) -> None:
        """Forget of the reply before what its listener did not hear."""
        if self._answered is not None:
            self.conversation.played(self._played.get(self._answered, 0))
            self._answered = None

    def _make_room(self, said: Audio, tell: Callable[[SessionEvent], None]) -> None:
        before = self.conversation.forgotten
        self.conversation.make_room(self.conversation.speech.hear(said))
        if self.conversation.forgotten > before:
            tell(Forgot(self.conversation.forgotten - before))

    async def _halt(self) -> None:
        """Stop the reply that is made, if one is: within one frame."""
        self._stop.set()
        async with self._changed:
            number = self.turn.number
            kept = [e for e in self._out if not (isinstance(e, Said) and e.turn == number)]
            self._out = deque(kept)
            self._changed.notify_all()
        if self._work is not None:
            await asyncio.wait({self._work})
            self._work = None

    async def _check_played_out(self) -> None:
        number = self.turn.number
        if self._played.get(number, 0) >= self._sent.get(number, 0):
            await self._on(turns.PlayedOut(number))

    # ---- events to the reader --------------------------------------------------------------

    async def _say(self, number: int, event: ReplyEvent, stop: threading.Event) -> None:
        if isinstance(event, AudioChunk):
            ahead = AHEAD_S * event.rate
            async with self._changed:
                await self._changed.wait_for(
                    lambda: (
                        stop.is_set()
                        or self._ended
                        or self._sent[number] - self._played.get(number, 0) < ahead
                    )
                )
                if stop.is_set():
                    return
                self._sent[number] += len(event.samples)
        await self._put(Said(number, event), stop)

    async def _put(self, event: SessionEvent | None, stop: threading.Event | None = None) -> None:
        """Hand an event to the reader, when it has room; None: the last was told."""
        async with self._changed:
            if event is None:
                self._ended = True
            else:
                of_reply = stop is not None
                await self._changed.wait_for(
                    lambda: (
                        not of_reply
                        or (stop is not None and stop.is_set())
                        or len(self._out) < WAITING
                    )
                )
                if stop is None or not stop.is_set():
                    self._out.append(event)
            self._changed.notify_all()
