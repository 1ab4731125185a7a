"""Push to talk: turns that the other side ends, asks for, cuts off and cancels."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from audio.conversation import Manner
from audio.session import Committed, Session, SessionEvent
from audio.speech import Speech
from lfm2_mm.errors import BadInput
from lfm2_mm.types import Audio, Sampling
from tests.listener import (
    GREEDY,
    RATE,
    SOUND,
    Listener,
    at,
    chunks_of,
    heard,
    tiny_speech,
)
from tests.plain_codec import PlainCodec


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return tiny_speech(tmp_path_factory.mktemp("speech"))


def test_committed_and_asked_for(speech: Speech) -> None:
    async def run() -> list[SessionEvent]:
        session = Session(speech.converse(manner=GREEDY), None)
        listener = Listener(session)
        reading = asyncio.create_task(listener.run())
        with pytest.raises(BadInput, match="append audio"):
            await session.commit()
        await heard(session, 0, 0.3)
        await session.clear()
        await heard(session, 0.3, 1.0)
        await session.commit()
        with pytest.raises(BadInput, match="append audio"):
            await session.commit()
        await session.respond()
        with pytest.raises(BadInput, match="being made"):
            await session.respond()
        await session.end()
        await reading
        with pytest.raises(BadInput, match="nothing waits"):
            await session.respond()
        return listener.events

    events = asyncio.run(run())
    wanted = speech.converse(manner=GREEDY).reply(Audio(SOUND[at(0.3) : at(1.0)], RATE))
    sound = np.concatenate([chunk.samples for chunk in chunks_of(events, 1)])
    assert np.array_equal(sound, wanted.audio.samples)
    assert isinstance(events[0], Committed) and events[0].answer is None


def test_a_turn_that_nobody_ends_is_refused_beyond_half_a_minute(speech: Speech) -> None:
    async def run() -> None:
        session = Session(speech.converse(manner=GREEDY), None)
        for _ in range(30):
            await session.hear(np.zeros(RATE, np.float32))
        with pytest.raises(BadInput, match="30 s"):
            await session.hear(np.zeros(1, np.float32))
        await session.clear()
        await session.hear(np.zeros(1, np.float32))

    asyncio.run(run())


@pytest.mark.parametrize("samples", [0, 15])
def test_truncated_after_it_was_made(speech: Speech, samples: int) -> None:
    """Also while it only sounds on: the history keeps what was played."""

    async def run() -> Session:
        short = Manner(sound=Sampling(temperature=0.0), steps=12)
        session = Session(speech.converse(manner=short), None)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        await session.commit()
        await session.respond()
        while session.turn.state != "draining":
            await asyncio.sleep(0.01)
        await session.truncate(1, samples)
        assert session.turn.state == "idle"
        await session.played(1, 1000)  # too late
        await session.close()
        await reading
        return session

    conversation = asyncio.run(run()).conversation
    straight = speech.converse(manner=Manner(sound=Sampling(temperature=0.0), steps=12))
    for _ in straight.reply(Audio(SOUND[: at(1.0)], RATE)):
        pass
    straight.played(samples)
    assert len(conversation.history) == len(straight.history)


def test_cancelled_it_keeps_what_was_sent(speech: Speech) -> None:
    async def run() -> tuple[int, int]:
        endless = Manner(sound=Sampling(temperature=0.0), steps=400)
        session = Session(speech.converse(manner=endless), None)
        listener = Listener(session, plays=False)
        reading = asyncio.create_task(listener.run())
        await heard(session, 0, 1.0)
        await session.commit()
        await session.respond()
        await listener.chunks(1, 3)
        await session.cancel()
        await asyncio.sleep(0.1)  # what was on its way comes
        received = listener.samples[1]
        await session.played(1, received)
        assert session.turn.state == "idle"
        await session.close()
        await reading
        return received, len(session.conversation.history)

    received, length = asyncio.run(run())
    straight = speech.converse(manner=Manner(sound=Sampling(temperature=0.0), steps=400))
    straight_reply = straight.reply(Audio(SOUND[: at(1.0)], RATE))
    while len(straight._ends) * PlainCodec.samples_per_frame < received + 20:
        next(straight_reply)
    straight.played(received)
    assert length == len(straight.history)
