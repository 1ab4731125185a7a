"""The live endpoint as its clients use it: the openai package, and plain WebSockets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio.speech import Speech
from tests import tiny_audio
from tests.live_server import serving, talker

openai = pytest.importorskip("openai")
websockets = pytest.importorskip("websockets.asyncio.client")

RATE = 24_000
QUIET = np.zeros(RATE, np.float32)
LOUD = tiny_audio.recording(1.0, RATE, 1) / 2 + 0.1  # a second that a gate on loudness opens for


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def address(speech: Speech) -> Iterator[str]:
    with serving(speech, detector="energy") as address:
        yield address


def pcm(samples: np.ndarray) -> str:
    return base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()


class Client:
    """The openai package's connection, with what came over it."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.events = connection, []  # type: ignore[var-annotated]

    async def until(self, kind: str) -> Any:
        """Read up to the next event of this kind."""
        while True:
            event = await asyncio.wait_for(self.connection.recv(), 60)
            self.events.append(event)
            if event.type == kind:
                return event
            assert event.type != "error" or kind == "error", event

    async def say(self, samples: np.ndarray) -> None:
        for at in range(0, len(samples), 2400):
            audio = pcm(samples[at : at + 2400])
            await self.connection.input_audio_buffer.append(audio=audio)

    def kinds(self) -> list[str]:
        """Types in order; runs of deltas as one."""
        kinds = [event.type for event in self.events]
        return [
            kind
            for n, kind in enumerate(kinds)
            if not kind.endswith("delta") or kind not in kinds[:n]
        ]

    def sound(self) -> int:
        """Samples that came."""
        deltas = [e.delta for e in self.events if e.type == "response.output_audio.delta"]
        return sum(len(base64.b64decode(delta)) // 2 for delta in deltas)


@asynccontextmanager
async def connected(address: str, **session: Any) -> AsyncIterator[Client]:
    api = openai.AsyncOpenAI(api_key="any", base_url=f"{address}v1", max_retries=0)
    async with api.realtime.connect(model="tiny-audio") as connection:
        client = Client(connection)
        await client.until("session.created")
        if session:
            await connection.session.update(session={"type": "realtime", **session})
            await client.until("session.updated")
        yield client
    await api.close()


def detecting(detection: dict[str, Any] | None) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": detection}}}


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def test_a_spoken_turn_is_answered_event_by_event(address: str) -> None:
    async def work() -> None:
        async with connected(address) as client:
            await client.say(np.concatenate((QUIET, LOUD, QUIET)))
            done = await client.until("response.done")
            assert done.response.status in ("completed", "incomplete")
            kinds = client.kinds()
            wanted = [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
                "response.created",
                "response.output_item.added",
                "conversation.item.added",
                "response.content_part.added",
            ]
            start = kinds.index(wanted[0])
            assert kinds[start : start + len(wanted)] == wanted
            assert {"response.output_audio.delta", "response.output_audio_transcript.delta"} <= set(
                kinds
            )
            assert kinds[-6:] == [
                "response.output_audio.done",
                "response.output_audio_transcript.done",
                "response.content_part.done",
                "response.output_item.done",
                "conversation.item.done",
                "response.done",
            ]
            assert client.sound() > RATE
            started = next(e for e in client.events if e.type.endswith("speech_started"))
            stopped = next(e for e in client.events if e.type.endswith("speech_stopped"))
            assert abs(started.audio_start_ms - 1000) < 100
            assert abs(stopped.audio_end_ms - 2000) < 100
            ids = [e.event_id for e in client.events]
            assert len(set(ids)) == len(ids)
            words = "".join(e.delta for e in client.events if e.type.endswith("transcript.delta"))
            assert done.response.output[0].content[0].transcript == words

    run(work)


def test_push_to_talk(address: str) -> None:
    async def work() -> None:
        async with connected(address, **detecting(None)) as client:
            await client.say(LOUD)
            await client.connection.input_audio_buffer.clear()
            await client.until("input_audio_buffer.cleared")
            await client.connection.input_audio_buffer.commit()
            assert "append audio first" in (await client.until("error")).error.message
            await client.connection.response.create()
            assert "nothing waits" in (await client.until("error")).error.message
            await client.say(LOUD)
            await client.connection.input_audio_buffer.commit()
            await client.connection.response.create()
            done = await client.until("response.done")
            assert done.response.output and client.sound() > RATE
            assert "input_audio_buffer.speech_started" not in client.kinds()

    run(work)


def test_a_typed_message_is_answered(address: str) -> None:
    async def work() -> None:
        async with connected(address, **detecting(None)) as client:
            item = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "How do I stop?"}],
            }
            await client.connection.conversation.item.create(item=item)
            await client.connection.response.create()
            await client.until("response.done")
            assert client.sound() > RATE

    run(work)


def test_speaking_into_a_reply_cancels_it_and_truncation_is_acknowledged(address: str) -> None:
    async def work() -> None:
        async with connected(address) as client:
            await client.say(np.concatenate((QUIET, LOUD, QUIET)))
            first = await client.until("response.output_audio.delta")
            await client.say(np.concatenate((QUIET[:2400], LOUD)))
            await client.until("input_audio_buffer.speech_started")
            await client.connection.conversation.item.truncate(
                item_id=first.item_id, content_index=0, audio_end_ms=80
            )
            truncated = await client.until("conversation.item.truncated")
            assert truncated.audio_end_ms == 80
            done = [e for e in client.events if e.type == "response.done"]
            assert [e.response.status for e in done] == ["cancelled"]
            assert done[0].response.status_details.reason == "turn_detected"
            await client.say(QUIET)
            second = await client.until("response.output_audio.delta")
            assert second.item_id != first.item_id

    run(work)


def test_a_reply_is_cancelled_by_request(address: str) -> None:
    async def work() -> None:
        async with connected(address, **detecting(None)) as client:
            await client.connection.response.cancel()
            assert "none was cancelled" in (await client.until("error")).error.message
            await client.say(LOUD)
            await client.connection.input_audio_buffer.commit()
            await client.connection.response.create()
            await client.until("response.output_audio.delta")
            await client.connection.response.cancel()
            done = await client.until("response.done")
            assert done.response.status_details.reason == "client_cancelled"
            before = client.sound()
            await client.connection.session.update(session={"type": "realtime"})
            await client.until("session.updated")
            assert client.sound() == before  # nothing more came

    run(work)


def test_sent_sound_stays_two_seconds_ahead_of_the_clock(address: str, speech: Speech) -> None:
    """A client that tells nothing plays as time passes: 60 steps are longer than 2 s of sound."""

    async def work() -> None:
        async with connected(address, **detecting(None)) as client:
            await client.say(LOUD)
            await client.connection.input_audio_buffer.commit()
            await client.connection.response.create()
            start = asyncio.get_running_loop().time()
            await client.until("response.output_audio.delta")
            await client.until("response.done")
            taken = asyncio.get_running_loop().time() - start
            ahead = client.sound() / RATE - taken
            assert client.sound() > 2.5 * RATE and ahead < 2.0 + 0.2

    run(work)


def test_semantic_detection_and_transcripts(address: str) -> None:
    async def work() -> None:
        listening = {
            "turn_detection": {"type": "semantic_vad", "eagerness": "high"},
            "transcription": {"model": "whatever"},
        }
        async with connected(address, audio={"input": listening}) as client:
            updated = client.events[-1].session
            assert updated.audio.input.turn_detection.eagerness == "high"
            assert updated.audio.input.transcription.model == "tiny-audio"
            await client.say(np.concatenate((QUIET, LOUD, QUIET, QUIET)))
            await client.until("conversation.item.input_audio_transcription.completed")

    run(work)


WRONG = [
    ("{", "no event in JSON"),
    ("[" * 100_000, "no event in JSON"),
    ("[1]", "valid dictionary"),
    ("{}", "type"),
    ('{"type": "nonsense"}', "nonsense"),
    ('{"type": "input_audio_buffer.append"}', "audio"),
    ('{"type": "input_audio_buffer.append", "audio": "?"}', "base64"),
    ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "16-bit"),
    ('{"type": "input_audio_buffer.append", "audio": 3}', "audio"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": 1}', "no item 'x'"),
    ('{"type": "session.update", "session": {"tools": [{"type": "function"}]}}', "tools"),
    ('{"type": "session.update", "session": {"voice": "nobody"}}', "voice"),
    ('{"type": "session.update", "session": {"temprature": 1}}', "temprature"),
    (
        '{"type": "session.update", "session": {"audio": {"input": {"format": '
        '{"type": "audio/pcmu"}}}}}',
        "format",
    ),
    ('{"type": "response.create", "response": {"tools": []}}', "tools"),
]


@pytest.mark.parametrize(("text", "named"), WRONG)
def test_wrong_events_are_named_and_the_session_goes_on(
    address: str, text: str, named: str
) -> None:
    async def work() -> None:
        uri = f"{address.replace('http', 'ws')}v1/realtime"
        async with websockets.connect(uri) as socket:
            await socket.recv()
            await socket.send(text)
            event = json.loads(await asyncio.wait_for(socket.recv(), 30))
            assert event["type"] == "error" and named in event["error"]["message"]
            await socket.send('{"type": "session.update", "session": {}, "event_id": "mine"}')
            assert json.loads(await socket.recv())["type"] == "session.updated"

    run(work)


def test_binary_messages_and_ids_of_events_in_errors(address: str) -> None:
    async def work() -> None:
        async with websockets.connect(f"{address.replace('http', 'ws')}v1/realtime") as socket:
            await socket.recv()
            await socket.send(b"\x00\x01")
            assert "binary" in json.loads(await socket.recv())["error"]["message"]
            await socket.send('{"type": "response.create", "event_id": "mine"}')
            assert json.loads(await socket.recv())["error"]["event_id"] == "mine"

    run(work)


def test_the_beta_dialect(address: str) -> None:
    async def work() -> None:
        uri = f"{address.replace('http', 'ws')}v1/realtime?model=tiny-audio"
        beta = {"OpenAI-Beta": "realtime=v1"}
        async with websockets.connect(uri, additional_headers=beta) as socket:
            created = json.loads(await socket.recv())["session"]
            assert created["input_audio_format"] == "pcm16" and "audio" not in created
            settings = {"modalities": ["text", "audio"], "turn_detection": None, "voice": "alloy"}
            await socket.send(json.dumps({"type": "session.update", "session": settings}))
            assert json.loads(await socket.recv())["session"]["turn_detection"] is None
            for event in (
                {"type": "input_audio_buffer.append", "audio": pcm(LOUD)},
                {"type": "input_audio_buffer.commit"},
                {"type": "response.create"},
            ):
                await socket.send(json.dumps(event))
            kinds = set()
            while "response.done" not in kinds:
                kinds.add(json.loads(await asyncio.wait_for(socket.recv(), 60))["type"])
            assert {"response.audio.delta", "response.audio_transcript.delta"} <= kinds
            assert "conversation.item.created" in kinds
            assert not any("output_audio" in kind or kind.endswith("item.added") for kind in kinds
                           if kind != "response.output_item.added")  # fmt: skip

    run(work)


def test_who_may_connect(speech: Speech) -> None:
    async def work(address: str) -> None:
        uri = f"{address.replace('http', 'ws')}v1/realtime"
        refused = __import__("websockets").exceptions.InvalidStatus
        with pytest.raises(refused, match="401"):
            await websockets.connect(uri)
        with pytest.raises(refused, match="403"):
            await websockets.connect(uri, origin="http://elsewhere.example")
        protocols = ["realtime", "openai-insecure-api-key.secret"]
        async with websockets.connect(uri, subprotocols=protocols) as socket:
            assert socket.subprotocol == "realtime"  # never the key
        async with websockets.connect(f"{uri}?model=none", subprotocols=protocols) as socket:
            assert "tiny-audio" in json.loads(await socket.recv())["error"]["message"]

    with serving(speech, key="secret") as address:
        asyncio.run(work(address))


def test_two_conversations_at_once(address: str) -> None:
    async def one(client: Client) -> None:
        await client.say(LOUD)
        await client.connection.input_audio_buffer.commit()
        await client.connection.response.create()
        await client.until("response.done")
        assert client.sound() > RATE

    async def work() -> None:
        async with (
            connected(address, **detecting(None)) as a,
            connected(address, **detecting(None)) as b,
        ):
            await asyncio.gather(one(a), one(b))

    run(work)


def test_the_example_in_the_documentation(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs/pages.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    code = code.replace("http://127.0.0.1:7860/", address).replace("nano-audio", "tiny-audio")
    exec(code, {})
    assert re.search(r"\(\d+\.\d s\)", capsys.readouterr().out)
