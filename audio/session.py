"""Live conversation: samples in, events out, one reply at a time in a thread of its own.

The clock is the number of samples heard, so a recording runs as fast as it can be read. Knows
detectors only by their protocol, and no microphone, socket or loudspeaker.

A reply may be prepared when the speaker only paused: it is made, held back, and either released at
the end of speech or withdrawn from the conversation when speech goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from audio import turns
from audio.conversation import Conversation
from audio.turns import (
    CancelReply,
    DiscardReply,
    FlushPlayback,
    PrepareReply,
    SpeechEnd,
    SpeechPause,
    SpeechResume,
    SpeechStart,
    StartReply,
    Turn,
)
from lfm2_mm.errors import BadInput, LfmError
from lfm2_mm.types import Audio, AudioChunk
from lfm2_mm.types import Event as ReplyEvent

RATE = 16_000  # Hz of what is heard
PRE_ROLL_S = 0.3  # heard before the start of speech that belongs to it
UTTERANCE_S = 30.0  # then the turn ends, whether the speaker does or not
AHEAD_S = 2.0  # of sound that may be sent before it is played
PREPARED_S = 0.4  # of sound that is made of a reply before its turn has come
ENOUGH_S = 0.8  # of sound ahead of what is played: other work may go first
WAITING = 64  # events that may wait for the reader

T = TypeVar("T")
Part = str | Audio  # of a turn


class Detector(Protocol):
    """Finds speech in the stream of the microphone."""

    loud: bool  # set while a reply sounds: more is then needed to begin
    silence_s: float  # that ends this pause; may be set when a pause was told

    def push(
        self, samples: np.ndarray
    ) -> list[SpeechStart | SpeechPause | SpeechResume | SpeechEnd]:
        """float32 at 16 kHz, any number -> what became certain with them."""


class Patience(Protocol):
    """Judges in a pause what was said so far."""

    def __call__(self, said: Audio, late: threading.Event) -> float | None:
        """Seconds of silence that shall end this turn; None: as many as usual. Called in a thread;
        once `late` is set the reply waits for it in vain: return."""


@dataclass(frozen=True)
class Committed:
    """A turn is complete; `answer` is the reply to it, if one was begun."""

    said: Audio
    answer: int | None


@dataclass(frozen=True)
class Said:
    """Something of reply `turn`."""

    turn: int
    event: ReplyEvent


@dataclass(frozen=True)
class Flush:
    """Stop playing reply `turn`, and tell by `played` or `truncate` how far it came."""

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


SessionEvent = SpeechStart | SpeechEnd | Committed | Said | Flush | Forgot | Failed


@dataclass(eq=False)
class _Making:
    """One reply: how far it was made, sent and played. The thread that makes it looks at `stop`."""

    number: int
    parts: tuple[Part, ...]
    released: bool = True  # false: what is made is held back
    stop: threading.Event = field(default_factory=threading.Event)
    due: threading.Event = field(default_factory=threading.Event)  # its turn came, or never will
    held: list[SessionEvent] = field(default_factory=list)
    sent: int = 0  # samples
    played: int = 0
    flushed: bool = False  # nothing after `played` was heard
    truncated: bool = False  # and that is the last word
    begun: bool = False  # the conversation knows of it
    withdrawn: bool = False  # it was made in vain
    task: asyncio.Task[None] | None = None

    @property
    def ahead_s(self) -> float:
        return AHEAD_S if self.released else PREPARED_S


class Session:
    """Feed `hear` and `played`, read with `async for`; `end` when nothing more is heard.

    Without a detector `commit` ends a turn and `respond` asks for the answer.
    """

    def __init__(
        self,
        conversation: Conversation,
        detector: Detector | None,
        *,
        reports: bool = True,
        patience: Patience | None = None,
        step: Callable[[Callable[[], T]], T] | None = None,
    ) -> None:
        """reports: whether `played` will be told; without, what was read counts as played.
        step: runs each piece of work on the conversation, where others share its model."""
        self.conversation, self.reports, self.patience = conversation, reports, patience
        self.turn = Turn()
        self.heard = 0  # samples: the clock
        self.pre_roll_s = PRE_ROLL_S
        self.answers = True  # whether the end of speech asks for a reply
        self.may_prepare: Callable[[], bool] = lambda: True
        self._step: Callable[[Callable[[], Any]], Any] = step or (lambda work: work())
        self._detector = detector
        self._detector_from = 0  # sample that the detector heard first
        self._kept = np.zeros(0, np.float32)  # the last samples; the last is number `heard` - 1
        self._speech_from = 0
        self._turns: list[Part] = []  # committed, and not answered yet
        self._making: _Making | None = None  # the latest reply, being made or made
        self._replies: dict[int, _Making] = {}  # those whose sound may still be played
        self._out: deque[SessionEvent] = deque()
        self._changed = asyncio.Condition()
        self._ended = False
        self._broken: BaseException | None = None  # a mistake of ours, for the reader

    @property
    def urgent(self) -> bool:
        """Whether the listener will soon wait for more of the reply."""
        making = self._making
        if making is None or not making.released or self.turn.state != "generating":
            return False
        return making.sent - making.played < ENOUGH_S * self.conversation.speech.rate

    # ---- what is heard ----------------------------------------------------------------------

    async def listen(self, detector: Detector | None) -> None:
        """Go on with this detector, or with none; what was heard and not committed is dropped."""
        await self.clear()
        self._detector, self._detector_from = detector, self.heard

    async def hear(self, samples: np.ndarray) -> None:
        """The next samples of the microphone, float32 at 16 kHz. Raises BadInput where no detector
        ends turns and this one is longer than 30 s; it is then as if nothing had come."""
        if self._detector is None:
            if len(self._kept) + len(samples) > UTTERANCE_S * RATE:
                raise BadInput(f"a turn lasts at most {UTTERANCE_S:.0f} s: commit or clear it")
            self.heard += len(samples)
            self._kept = np.concatenate((self._kept, samples))
            return
        self.heard += len(samples)
        self._kept = np.concatenate((self._kept, samples))
        hearing = self.turn.state == "hearing"
        keep = UTTERANCE_S + self.pre_roll_s if hearing else 2 * self.pre_roll_s
        self._kept = self._kept[-int(keep * RATE) - len(samples) :]
        self._detector.loud = self.turn.sounding
        for found in self._detector.push(samples):
            await self._on(type(found)(found.at + self._detector_from))
        if self.turn.state == "hearing" and self.heard - self._speech_from > UTTERANCE_S * RATE:
            await self._on(SpeechEnd(self.heard))

    async def commit(self) -> None:
        """What was heard is a turn. With a detector, speech ends here, and is answered if ends are.

        Raises BadInput where nothing was heard."""
        if self._detector is not None and self.turn.state == "hearing":
            await self._on(SpeechEnd(self.heard))
        elif self._detector is None and len(self._kept):
            said, self._kept = Audio(self._kept, RATE), np.zeros(0, np.float32)
            self.add(said)
            await self._put(Committed(said, None))
        else:
            raise BadInput("nothing was said that could be committed: append audio first")

    async def clear(self) -> None:
        """Drop what was heard and not committed."""
        if self.turn.state == "hearing":
            await self._on(turns.SpeechKept())
        self._kept = np.zeros(0, np.float32)

    def add(self, part: Part) -> None:
        """A turn, or a part of one, in text or sound; `respond` asks for its answer."""
        self._turns.append(part)

    # ---- what is answered -------------------------------------------------------------------

    async def respond(self) -> None:
        """Answer what was committed. Raises BadInput where nothing was, or not now."""
        if self.turn.state not in ("idle", "draining"):
            what = "a reply is being made" if self.turn.sounding else "somebody is speaking"
            raise BadInput(f"{what}: cancel it, or wait until it ends")
        if not self._turns:
            raise BadInput("nothing waits for an answer: append and commit audio, or add a message")
        await self._on(turns.Asked())

    async def cancel(self) -> None:
        """Make no more of the reply. What was sent of it may be played on."""
        await self._on(turns.Stopped())
        await self._check_played_out()

    async def played(self, number: int, samples: int) -> None:
        """The listener has heard so many samples of reply `number`."""
        reply = self._replies.get(number)
        if reply is None or reply.truncated:
            return
        reply.played = max(reply.played, min(samples, reply.sent))
        async with self._changed:
            self._changed.notify_all()
        await self._check_played_out()

    async def truncate(self, number: int, samples: int) -> None:
        """The listener stopped reply `number` after so many samples: the rest is forgotten."""
        reply = self._replies.get(number)
        if reply is None:
            return
        if number == self.turn.number:
            await self._on(turns.Stopped())
        reply.played, reply.flushed, reply.truncated = min(samples, reply.sent), True, True
        if number == self.turn.number:
            await self._on(turns.PlayedOut(number))

    async def end(self) -> None:
        """Nothing more is heard: what is said now is answered, then the events end."""
        await self._on(SpeechEnd(self.heard))
        if self._making is not None and self._making.task is not None:
            await asyncio.wait({self._making.task})
        await self._put(None)

    async def close(self) -> None:
        """Stop at once."""
        if self._making is not None and self._making.task is not None:
            await self._halt(self._making)
            await asyncio.wait({self._making.task})
            await asyncio.to_thread(self._settle, self._making)
            self._making = None
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
                heard = self._replies[event.turn].played + len(event.event.samples)
                await self.played(event.turn, heard)
            yield event
        if self._broken is not None:
            raise self._broken

    # ---- one event, and what it asks for --------------------------------------------------

    async def _on(self, event: turns.Event) -> None:
        before = self.turn
        if isinstance(event, SpeechEnd) and before.state == "hearing":
            said = self._utterance(event.at)
            self.add(said)
            self.turn, actions = turns.step(before, event if self.answers else turns.SpeechKept())
            await self._put(event)
            await self._put(Committed(said, self.turn.number if self.answers else None))
        else:
            self.turn, actions = turns.step(before, event)
        if isinstance(event, SpeechStart) and before.state != "hearing":
            self._speech_from = event.at
            await self._put(event)
        for action in actions:
            match action:
                case PrepareReply(number) if isinstance(event, SpeechPause):
                    if self.may_prepare() and self.answers:
                        said = self._utterance(event.at)
                        self._start(_Making(number, (*self._turns, said), released=False))
                case DiscardReply():
                    await self._discard()
                case StartReply(number):
                    await self._reply_to(number)
                case CancelReply():
                    await self._halt(self._making)
                case FlushPlayback(number):
                    if number in self._replies:
                        self._replies[number].flushed = True
                    await self._put(Flush(number))

    def _utterance(self, end: int) -> Audio:
        """What was said from a little before its start."""
        first = self.heard - len(self._kept)
        start = max(self._speech_from - int(self.pre_roll_s * RATE) - first, 0)
        return Audio(self._kept[start : max(end - first, start)].copy(), RATE)

    async def _reply_to(self, number: int) -> None:
        """Release the reply that was prepared for this turn, or begin one."""
        making = self._making
        parts = tuple(self._turns)
        self._turns = []
        if making is not None and making.number == number and not making.withdrawn:
            async with self._changed:
                making.released = True
                making.due.set()
                self._out += making.held
                making.held = []
                self._changed.notify_all()
            if making.task is not None and making.task.done():
                await self._finished(making)
            return
        self._start(_Making(number, parts))

    # ---- a reply is made ------------------------------------------------------------------

    def _start(self, making: _Making) -> None:
        former, self._making = self._making, making
        self._replies = {n: r for n, r in self._replies.items() if n == making.number - 1}
        self._replies[making.number] = making
        making.task = asyncio.create_task(self._make(making, former, asyncio.get_running_loop()))

    async def _make(
        self, making: _Making, former: _Making | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        def wait_for(coroutine: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        def work() -> None:
            try:
                self._settle(former)
                if not making.released:
                    self._judge(making, loop)
                self._make_room(making, lambda event: wait_for(self._put(event, making)))
                if making.stop.is_set():
                    return
                reply = self._step(lambda: self.conversation.reply(*making.parts))
                making.begun = True
                try:
                    while not making.stop.is_set():
                        event = self._step(lambda: next(reply, None))
                        if event is None:
                            break
                        wait_for(self._say(making, event))
                finally:
                    self._step(reply.close)
            except LfmError as error:
                wait_for(self._put(Failed(making.number, error), making))

        if former is not None and former.task is not None:
            await asyncio.wait({former.task})
        try:
            await asyncio.to_thread(work)
        except Exception as error:  # noqa: BLE001  (raised where the events are read)
            self._broken = error
            await self._put(None)
        if making.released:
            await self._finished(making)

    async def _finished(self, making: _Making) -> None:
        if not making.stop.is_set():
            await self._on(turns.Generated(making.number))
            await self._check_played_out()

    def _settle(self, former: _Making | None) -> None:
        """Forget of the reply before what its listener did not hear, all of one made in vain."""
        if former is None or not former.begun:
            return
        if former.withdrawn:
            self._step(self.conversation.withdraw)
        else:
            heard = former.played if former.flushed else former.sent
            self._step(lambda: self.conversation.played(heard))

    def _judge(self, making: _Making, loop: asyncio.AbstractEventLoop) -> None:
        """Set how much silence ends this turn, by what was said in it."""
        said = making.parts[-1]
        if self.patience is None or not isinstance(said, Audio):
            return
        wanted = self.patience(said, making.due)

        def tell() -> None:
            current = self.turn.prepared and self._making is making
            if wanted is not None and current and self._detector is not None:
                self._detector.silence_s = wanted

        loop.call_soon_threadsafe(tell)

    def _make_room(self, making: _Making, tell: Callable[[SessionEvent], None]) -> None:
        conversation = self.conversation
        hear = conversation.speech.hear
        before = conversation.forgotten
        parts = [hear(part) if isinstance(part, Audio) else part for part in making.parts]
        self._step(lambda: conversation.make_room(*parts))
        if conversation.forgotten > before:
            tell(Forgot(conversation.forgotten - before))

    async def _discard(self) -> None:
        """The prepared reply was in vain: speech goes on."""
        making = self._making
        if making is not None and not making.released:
            making.withdrawn = True
            making.held = []
            await self._halt(making)

    async def _halt(self, making: _Making | None) -> None:
        """Stop a reply, within one frame; nothing more of it is told."""
        if making is None:
            return
        making.stop.set()
        making.due.set()
        async with self._changed:
            gone = [e for e in self._out if isinstance(e, Said) and e.turn == making.number]
            self._out = deque(e for e in self._out if e not in gone)
            chunks = (e.event for e in gone if isinstance(e.event, AudioChunk))
            making.sent -= sum(len(chunk.samples) for chunk in chunks)
            self._changed.notify_all()

    async def _check_played_out(self) -> None:
        reply = self._replies.get(self.turn.number)
        if reply is not None and reply.played >= reply.sent:
            await self._on(turns.PlayedOut(self.turn.number))

    # ---- events to the reader --------------------------------------------------------------

    async def _say(self, making: _Making, event: ReplyEvent) -> None:
        if isinstance(event, AudioChunk):
            rate = event.rate
            async with self._changed:
                await self._changed.wait_for(
                    lambda: (
                        making.stop.is_set()
                        or self._ended
                        or making.sent - making.played < making.ahead_s * rate
                    )
                )
                if making.stop.is_set():
                    return
                making.sent += len(event.samples)
        await self._put(Said(making.number, event), making)

    async def _put(self, event: SessionEvent | None, making: _Making | None = None) -> None:
        """Hand an event to the reader, one of a reply when it has room; None: the last was told."""
        async with self._changed:
            if event is None:
                self._ended = True
            elif making is None:
                self._out.append(event)
            else:
                await self._changed.wait_for(
                    lambda: making.stop.is_set() or len(self._waiting(making)) < WAITING
                )
                if not making.stop.is_set():
                    self._waiting(making).append(event)
            self._changed.notify_all()

    def _waiting(self, making: _Making) -> deque[SessionEvent] | list[SessionEvent]:
        return self._out if making.released else making.held
