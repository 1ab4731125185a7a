"""A live conversation from recorded samples: who is heard, what is said, what is cut off."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from audio.conversation import Manner
from audio.session import (
    AHEAD_S,
    PREPARED_S,
    WAITING,
    Committed,
    Failed,
    Flush,
    Forgot,
    Said,
    Session,
    SessionEvent,
)
from audio.speech import Speech
from audio.turns import SpeechEnd, SpeechPause, SpeechResume, SpeechStart
from audio.vad import Found
from lfm2_mm.types import Audio, Done, Sampling
from tests.listener import (
    GREEDY,
    RATE,
    SOUND,
    Listener,
    Told,
    at,
    chunks_of,
    heard,
    tiny_speech,
)
from tests.plain_codec import PlainCodec


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return tiny_speech(tmp_path_factory.mktemp("speech"))


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
    assert [type(e) for e in events[:3]] == [SpeechStart, SpeechEnd, Committed]
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


# ---- a reply is prepared in a pause ---------------------------------------------------------


async def settled(session: Session) -> None:
    """Until the reply that is being prepared waits for its turn."""
    making = session._making
    assert making is not None and making.task is not None
    while not making.task.done() and making.sent < PREPARED_S * PlainCodec.rate:
        await asyncio.sleep(0.01)


class Late(Told):
    """Tells of an end later than it was: that of the pause before."""

    def push(self, samples: np.ndarray) -> list[Found]:
        found = super().push(samples)
        return [SpeechEnd(at(1.0)) if isinstance(e, SpeechEnd) else e for e in found]


def prepared(speech: Speech, detector: Told) -> tuple[list[SessionEvent], Session]:
    """Speech from 0.5 s to a pause at 1 s, a reply prepared there, and heard on to 1.6 s."""
    detector.events = [SpeechStart(at(0.5)), SpeechPause(at(1.0)), *detector.events]

    async def run() -> tuple[list[SessionEvent], Session]:
        session = Session(speech.converse(manner=GREEDY), detector)
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.1)
        await settled(session)
        assert not chunks_of(listener.events, 1), "it was told before its turn"
        await heard(session, 1.1, 1.6)
        await session.end()
        await reading
        return listener.events, session

    return asyncio.run(run())


def test_a_prepared_reply_is_the_one_that_would_have_been_made(speech: Speech) -> None:
    events, _ = prepared(speech, Late(SpeechEnd(at(1.5))))
    wanted = speech.converse(manner=GREEDY).reply(Audio(SOUND[at(0.2) : at(1.0)], RATE))
    sound = np.concatenate([chunk.samples for chunk in chunks_of(events, 1)])
    assert np.array_equal(sound, wanted.audio.samples)
    assert isinstance(events[-1], Said) and isinstance(events[-1].event, Done)


def test_who_goes_on_was_never_answered(speech: Speech) -> None:
    events, session = prepared(speech, Told(SpeechResume(at(1.2)), SpeechEnd(at(1.5))))
    wanted = speech.converse(manner=GREEDY)
    whole = wanted.reply(Audio(SOUND[at(0.2) : at(1.5)], RATE))
    sound = np.concatenate([chunk.samples for chunk in chunks_of(events, 1)])
    assert np.array_equal(sound, whole.audio.samples)
    assert len(session.conversation.history) == len(wanted.history)
    assert session.conversation.number == 1 and Flush(1) not in events


def test_what_was_prepared_in_vain_leaves_nothing(speech: Speech) -> None:
    async def run() -> Session:
        told = Told(SpeechStart(at(0.5)), SpeechPause(at(1.0)), SpeechResume(at(1.2)))
        session = Session(speech.converse(manner=GREEDY), told)
        await heard(session, 0, 1.1)
        await settled(session)
        await heard(session, 1.1, 1.3)
        await session.close()
        return session

    session = asyncio.run(run())
    assert len(session.conversation.history) == len(speech.converse().history)


def test_only_a_little_is_prepared_and_only_where_it_may_be(speech: Speech) -> None:
    async def run(allowed: bool) -> float:
        told = Told(SpeechStart(at(0.5)), SpeechPause(at(1.0)))
        session = Session(speech.converse(manner=GREEDY), told)
        session.may_prepare = lambda: allowed
        await heard(session, 0, 1.1)
        if not allowed:
            assert session._making is None
            return 0.0
        await settled(session)
        await asyncio.sleep(0.3)
        assert session._making is not None
        sent = session._making.sent
        await session.close()
        return sent

    most = PREPARED_S * PlainCodec.rate
    assert most <= asyncio.run(run(True)) <= most + PlainCodec.samples_per_frame
    asyncio.run(run(False))


@pytest.mark.parametrize("wanted", [0.2, 1.0, None])
def test_what_was_said_tells_how_long_to_wait(speech: Speech, wanted: float | None) -> None:
    asked: list[int] = []

    def patience(said: Audio, stop: object) -> float | None:
        asked.append(len(said.samples))
        return wanted

    async def run() -> float:
        told = Told(SpeechStart(at(0.5)), SpeechPause(at(1.0)))
        session = Session(speech.converse(manner=GREEDY), told, patience=patience)
        await heard(session, 0, 1.1)
        await settled(session)
        await session.close()
        return told.silence_s

    assert asyncio.run(run()) == (wanted or 0.5) and asked == [at(0.8)]
