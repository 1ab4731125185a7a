"""A live conversation from recorded samples: who is heard, what is said, what is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import audio
from audio.conversation import Manner
from audio.session import AHEAD_S, WAITING, Failed, Flush, Forgot, Said, Session, SessionEvent
from audio.speech import Speech
from audio.turns import SpeechEnd, SpeechStart
from lfm2_mm.types import Audio, AudioChunk, Done, Sampling
from tests import tiny_audio
from tests.plain_codec import PlainCodec

RATE = 16_000
GREEDY = Manner(sound=Sampling(temperature=0.0), steps=60)
SOUND = tiny_audio.recording(4.0, RATE, 1)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder: Path = tmp_path_factory.mktemp("speech")
    tiny_audio.speech_folder(folder, seed=3, loud={tiny_audio.IM_END: 0.1}, **tiny_audio.SMALL)
    speech = audio.open(folder, device="cpu", dtype="fp32")
    speech.codec = PlainCodec()  # type: ignore[assignment]
    return speech


class Told:
    """Finds speech where it is told to."""

    def __init__(self, *events: SpeechStart | SpeechEnd) -> None:
        self.events, self.seen, self.loud = list(events), 0, False

    def push(self, samples: np.ndarray) -> list[SpeechStart | SpeechEnd]:
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


@pytest.mark.parametrize("size", [7, 80, 1601, 64_000])
def test_a_question_is_answered_as_in_a_plain_conversation(speech: Speech, size: int) -> None:
    async def run() -> list[SessionEvent]:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.5)))
        session = Session(speech.converse(manner=GREEDY), told)
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.5, size)
        await session.end()
        await reading
        return listener.events

    events = asyncio.run(run())
    said = Audio(SOUND[at(0.2) : at(1.5)], RATE)  # 300 ms before its start belong to it
    wanted = speech.converse(manner=GREEDY).reply(said)
    sound = np.concatenate([chunk.samples for chunk in chunks_of(events, 1)])
    assert np.array_equal(sound, wanted.audio.samples)
    assert [type(e) for e in events[:2]] == [SpeechStart, SpeechEnd]
    assert isinstance(events[-1], Said) and isinstance(events[-1].event, Done)


@pytest.mark.parametrize(("chunks", "played"), [(1, 5), (4, 15)])
def test_an_interruption_ends_the_reply_and_what_was_not_played_is_forgotten(
    speech: Speech, chunks: int, played: int
) -> None:
    async def run() -> tuple[list[SessionEvent], Session]:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        session = Session(speech.converse(manner=GREEDY), told)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        await listener.chunks(1, chunks)
        await session.played(1, played)  # half a frame, a frame and a half
        told.events = [SpeechStart(at(1.5)), SpeechEnd(at(2.0))]
        await heard(session, 1.0, 2.0)
        listener.plays = True
        await session.end()
        await reading
        return listener.events, session

    events, session = asyncio.run(run())
    flush = next(i for i, e in enumerate(events) if isinstance(e, Flush))
    assert events[flush] == Flush(1)
    assert not any(isinstance(e, Said) and e.turn == 1 for e in events[flush:])
    straight = speech.converse(manner=GREEDY)
    for _ in straight.reply(Audio(SOUND[at(0.2) : at(1.0)], RATE)):
        pass
    straight.played(played)
    wanted = straight.reply(Audio(SOUND[at(1.2) : at(2.0)], RATE)).audio.samples
    sound = np.concatenate([chunk.samples for chunk in chunks_of(events, 2)])
    assert np.array_equal(sound, wanted)
    assert len(session.conversation.history) == len(straight.history)


def test_a_reply_that_was_made_but_still_sounds_can_be_interrupted(speech: Speech) -> None:
    async def run() -> list[SessionEvent]:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        short = Manner(sound=Sampling(temperature=0.0), steps=12)
        session = Session(speech.converse(manner=short), told)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        while session.turn.state != "draining":
            await asyncio.sleep(0.01)
        told.events = [SpeechStart(at(1.2))]
        await heard(session, 1.0, 1.3)
        assert session.turn.state == "hearing"
        await session.close()
        await reading
        return listener.events

    assert Flush(1) in asyncio.run(run())


def test_what_is_not_played_holds_the_reply_back(speech: Speech) -> None:
    async def run() -> int:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        endless = Manner(sound=Sampling(temperature=0.0), steps=400)
        session = Session(speech.converse(manner=endless), told)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        most = AHEAD_S * PlainCodec.rate
        while listener.samples.get(1, 0) < most:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await session.close()
        await reading
        return listener.samples[1]

    ahead = AHEAD_S * PlainCodec.rate
    assert ahead <= asyncio.run(run()) <= ahead + PlainCodec.samples_per_frame


def test_a_reader_who_does_not_read_holds_the_reply_back(speech: Speech) -> None:
    async def run() -> int:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        endless = Manner(sound=Sampling(temperature=0.0), steps=400)
        session = Session(speech.converse(manner=endless), told, reports=False)
        await heard(session, 0, 1.0)
        await asyncio.sleep(1.0)
        waiting = len(session._out)
        await session.close()
        return waiting

    assert 3 < asyncio.run(run()) <= WAITING


def test_without_reports_what_was_read_counts_as_played(speech: Speech) -> None:
    async def run() -> tuple[str, int]:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        session = Session(speech.converse(manner=GREEDY), told, reports=False)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        await session.end()
        await reading
        return session.turn.state, listener.samples[1]

    state, samples = asyncio.run(run())
    assert state == "idle" and samples > 0


def test_what_is_too_short_to_hear_is_told_and_the_next_turn_is_answered(speech: Speech) -> None:
    async def run() -> list[SessionEvent]:
        told = Told(SpeechStart(0), SpeechEnd(100))
        session = Session(speech.converse(manner=GREEDY), told)
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        await session.hear(SOUND[:100])
        await listener.until(Failed)
        told.events = [SpeechStart(at(0.5)), SpeechEnd(at(1.0))]
        await heard(session, 0.1, 1.1)
        await session.end()
        await reading
        return listener.events

    events = asyncio.run(run())
    failed = next(e for e in events if isinstance(e, Failed))
    assert failed.turn == 1 and "20 ms" in str(failed.error)
    assert chunks_of(events, 2)


def test_who_does_not_stop_is_answered_all_the_same(
    speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio.session.UTTERANCE_S", 1.0)

    async def run() -> list[SessionEvent]:
        session = Session(speech.converse(manner=GREEDY), Told(SpeechStart(at(0.5))))
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 2.0)
        await session.end()
        await reading
        return listener.events

    events = asyncio.run(run())
    end = next(e for e in events if isinstance(e, SpeechEnd))
    assert at(1.5) < end.at <= at(1.6) and chunks_of(events, 1)


def test_memory_does_not_grow_with_silence(speech: Speech) -> None:
    async def run() -> int:
        session = Session(speech.converse(manner=GREEDY), Told())
        for _ in range(100):
            await session.hear(np.zeros(RATE, np.float32))
        return len(session._kept)

    assert asyncio.run(run()) <= 2 * RATE


def test_a_full_context_forgets_its_oldest_turns_and_says_so(speech: Speech) -> None:
    async def run() -> list[SessionEvent]:
        told = Told(SpeechStart(at(0.5)), SpeechEnd(at(1.0)))
        conversation = speech.converse(manner=GREEDY)
        conversation.reply("How do I stop?").close()
        session = Session(conversation, told)
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        await session.end()
        await reading
        return listener.events

    speech.context, whole = 300, speech.context
    try:
        events = asyncio.run(run())
    finally:
        speech.context = whole
    assert Forgot(1) in events and chunks_of(events, 1)
