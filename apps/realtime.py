"""The WebSocket /v1/realtime: OpenAI's Realtime events over a live Session.

One connection is one conversation. Knows events and items; turns, interruption and history are the
session's, names and fields of the wire those of `realtime_wire.py`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from apps import realtime_wire as wire
from apps.realtime_responses import Response
from apps.realtime_wire import RATE, new_id
from audio.conversation import TRANSCRIBING
from audio.endings import Endings
from audio.resample import Resampler
from audio.session import RATE as HEARD_RATE
from audio.session import Committed, Failed, Flush, Forgot, Said, Session
from audio.turns import SpeechEnd, SpeechStart
from audio.vad import Hysteresis, SpeechDetector, open_judge
from lfm2_mm.errors import BadInput, LfmError
from lfm2_mm.types import Audio, AudioChunk, Done, TextDelta

if TYPE_CHECKING:
    from apps.service import Service
    from audio.speech import Speech

MOST_CONNECTIONS = 16
PAUSE_S = 0.16  # of silence after which a reply is prepared
MOST_TOKENS = 10  # of a transcript, for a second of speech
SLICE = HEARD_RATE // 10  # samples heard before others get a turn on the event loop
FULL, UNKNOWN = 1013, 1008  # codes of closing: try again later; policy


@dataclass(frozen=True)
class Host:
    """A speech checkpoint, and how a step of work on it is run from another thread."""

    name: str
    speech: Speech
    step: Callable[[Callable[[], Any]], Any]
    idle: Callable[[], bool] = lambda: True  # whether nothing else asks for it


def served(socket: WebSocket, model: str | None) -> Host:
    """The speech checkpoint of the server's Service. Raises LfmError where there is none such."""
    service: Service = socket.app.state.service
    found = service.find(model, "speech") if model else service.first("speech")
    if found is None:
        raise BadInput("no speech checkpoint is served: start the server with --models NAME")
    lane = found.lane
    return Host(found.name, found.engine, lane.call, lambda: lane.jobs == 0)


def router(
    find: Callable[[WebSocket, str | None], Host] = served, detector: str = "auto"
) -> APIRouter:
    """`find` gives the checkpoint a connection asks for by name; it raises LfmError for others.
    `detector`: a kind of `audio.vad.KINDS`."""
    routes = APIRouter()
    open_ones: set[Connection] = set()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket, model: str | None = None) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept("realtime" if "realtime" in offered else None)
        beta = (
            socket.headers.get("openai-beta", "") == "realtime=v1"
            or "openai-beta.realtime-v1" in offered
        )
        try:
            if len(open_ones) >= MOST_CONNECTIONS:
                raise BadInput(f"{len(open_ones)} conversations are open, which is the most")
            host = find(socket, model)
        except LfmError as error:
            await socket.send_text(json.dumps(wire.told(error)))
            await socket.close(FULL if len(open_ones) >= MOST_CONNECTIONS else UNKNOWN)
            return
        connection = Connection(socket, host, beta, detector)
        connection.alone = lambda: not any(c.busy for c in open_ones if c is not connection)
        open_ones.add(connection)
        try:
            await connection.run()
        finally:
            open_ones.discard(connection)

    return routes


class Connection:
    """One client: its events in, ours out."""

    def __init__(self, socket: WebSocket, host: Host, beta: bool, detector: str) -> None:
        self.socket, self.host, self.beta = socket, host, beta
        self.alone: Callable[[], bool] = lambda: True
        self.id = new_id("sess")
        self.detection: wire.ServerVad | wire.SemanticVad | None = wire.ServerVad()
        self.transcribes = False
        self.reports = False
        self.most: int | str = "inf"
        self.instructions: str | None = None
        self.judge, self.judge_why = open_judge(detector)
        self.endings = Endings(self._transcript)
        self.session = Session(
            host.speech.converse(), None, patience=self._patience, step=host.step
        )
        self.session.may_prepare = lambda: self.alone() and host.idle()
        self.up = Resampler(RATE, HEARD_RATE)
        self.up_state = self.up.start()
        self.responses: dict[int, Response] = {}
        self.heard_item = new_id("item")  # of what is being heard
        self.last_item: str | None = None
        self.silence_ms = 0.0  # from the last word to the end of the turn
        self._sending = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether a reply is being made."""
        return self.session.turn.state == "generating"

    async def run(self) -> None:
        """Serve until the client goes."""
        await self._detect()
        await self.send("session.created", session=self.settings())
        tasks = [
            asyncio.create_task(work()) for work in (self._read, self._tell, self._guess_played)
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None:
                    raise error
        except (WebSocketDisconnect, RuntimeError) as error:
            # A socket that is closed while something is sent raises RuntimeError.
            if isinstance(error, RuntimeError) and "close" not in str(error).lower():
                raise
        finally:
            for task in (*tasks, *self._writing):
                task.cancel()
            await asyncio.gather(*tasks, *self._writing, return_exceptions=True)
            await self.session.close()

    async def send(self, kind: str, **fields: Any) -> None:
        name = wire.BETA_NAMES.get(kind, kind) if self.beta else kind
        if name is None:
            return
        event = {"type": name, "event_id": new_id("event"), **fields}
        async with self._sending:
            await self.socket.send_text(json.dumps(event))

    # ---- what the client sends --------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            text = message.get("text")
            event_id = None
            try:
                if text is None:
                    raise BadInput("events are JSON texts; binary messages are not taken")
                event = wire.parsed(text)
                event_id = event.event_id
                await self._do(event)
            except LfmError as error:
                async with self._sending:
                    await self.socket.send_text(json.dumps(wire.told(error, event_id)))

    async def _do(self, event: Any) -> None:
        match event:
            case wire.Append(audio=audio):
                await self._hear(wire.samples_of(audio))
            case wire.Playback(item_id=item, samples=samples):
                await self.session.played(self._number(item), self._of_reply(samples))
            case wire.SessionUpdate(session=settings):
                await self._update(settings)
            case wire.Commit():
                await self.session.commit()
            case wire.Clear():
                await self.session.clear()
                await self.send("input_audio_buffer.cleared")
            case wire.Create():
                await self.session.respond()
                await self._created(self.session.turn.number)
            case wire.Cancel(response_id=which):
                await self._cancel(which)
            case wire.ItemCreate(item=item):
                await self._add(item)
            case wire.Truncate(item_id=item, audio_end_ms=end):
                number = self._number(item)
                await self.session.truncate(number, self._of_reply(end * RATE // 1000))
                self.responses[number].flushed = True
                await self.responses[number].end("cancelled", "client_cancelled")
                await self.send(
                    "conversation.item.truncated", item_id=item, content_index=0, audio_end_ms=end
                )

    async def _hear(self, samples: np.ndarray) -> None:
        heard, self.up_state = self.up.push(samples, self.up_state)
        for at in range(0, len(heard), SLICE):
            await self.session.hear(heard[at : at + SLICE])
            await asyncio.sleep(0)

    async def _update(self, settings: wire.Settings) -> None:
        """All of it, or nothing and an error."""
        if settings.instructions is not None and settings.instructions != self.instructions:
            if self.session.turn.number or self.session.turn.prepared:
                raise BadInput("instructions are for a conversation that has not begun")
            self.session.conversation = self.host.speech.converse(settings.instructions or None)
            self.instructions = settings.instructions
        most = settings.max_output_tokens or settings.max_response_output_tokens
        if most is not None:
            self.most = most
            conversation = self.session.conversation
            usual = self.host.speech.converse().manner
            steps = usual.steps if most == "inf" else int(most)
            conversation.manner = replace(usual, steps=steps)
        given, transcription = wire.transcription_of(settings)
        if given:
            self.transcribes = transcription is not None
        if settings.x_playback is not None:
            self.reports = settings.x_playback
        given, detection = wire.detection_of(settings)
        if given:
            self.detection = detection
            await self._detect()
        await self.send("session.updated", session=self.settings())

    async def _detect(self) -> None:
        """Listen as `detection` says."""
        detection = self.detection
        if detection is None:
            await self.session.listen(None)
            return
        rule = Hysteresis(pause_s=PAUSE_S)
        if isinstance(detection, wire.ServerVad):
            begin = detection.threshold
            silence = detection.silence_duration_ms / 1000
            hold = max(begin - 0.15, 0.01)
            rule = replace(rule, begin=begin, hold=hold, silence_s=silence)
            self.session.pre_roll_s = detection.prefix_padding_ms / 1000
        self.session.answers = detection.create_response
        await self.session.listen(SpeechDetector(self.judge, rule))

    async def _cancel(self, which: str | None) -> None:
        response = self.responses.get(self.session.turn.number)
        if response is None or response.status != "in_progress" or which not in (None, response.id):
            raise BadInput("no such response is being made, so none was cancelled")
        await self.session.cancel()
        await response.end("cancelled", "client_cancelled")

    async def _add(self, item: wire.Item) -> None:
        for part in item.content:
            if isinstance(part, wire.TextPart):
                self.session.add(part.text)
            else:
                self.session.add(Audio(wire.samples_of(part.audio), RATE))
        content = [part.model_dump(exclude={"audio"}, exclude_none=True) for part in item.content]
        await self._item_added(item.id or new_id("item"), content)

    # ---- what the session says --------------------------------------------------------------

    async def _tell(self) -> None:
        async for event in self.session:
            match event:
                case SpeechStart(at):
                    self.heard_item = new_id("item")
                    await self.send(
                        "input_audio_buffer.speech_started",
                        item_id=self.heard_item,
                        audio_start_ms=at * 1000 // HEARD_RATE,
                    )
                case SpeechEnd(at):
                    await self.send(
                        "input_audio_buffer.speech_stopped",
                        item_id=self.heard_item,
                        audio_end_ms=at * 1000 // HEARD_RATE,
                    )
                    self.silence_ms = (self.session.heard - at) * 1000 / HEARD_RATE
                case Committed():
                    await self._committed(event)
                case Flush(number):
                    if number in self.responses:
                        self.responses[number].flushed = True
                        await self.responses[number].end("cancelled", "turn_detected")
                case Said(number, said_event):
                    await self._say(number, said_event)
                case Failed(number, error):
                    response = await self._created(number)
                    async with self._sending:
                        await self.socket.send_text(json.dumps(wire.told(error)))
                    await response.end("failed", "error")
                case Forgot(count):
                    if self.reports:
                        await self.send("x.forgot", turns=count)

    async def _committed(self, event: Committed) -> None:
        item = self.heard_item
        self.heard_item = new_id("item")
        previous = self.last_item
        await self.send("input_audio_buffer.committed", item_id=item, previous_item_id=previous)
        await self._item_added(item, [{"type": "input_audio", "transcript": None}])
        if event.answer is not None:
            await self._created(event.answer)
        if self.transcribes:
            task = asyncio.create_task(self._write_down(item, event.said))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _item_added(self, item_id: str, content: list[dict[str, Any]]) -> None:
        item = {
            "id": item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": content,
        }
        previous, self.last_item = self.last_item, item_id
        await self.send("conversation.item.added", previous_item_id=previous, item=item)
        await self.send("conversation.item.done", previous_item_id=previous, item=item)

    async def _created(self, number: int) -> Response:
        """The response of this reply, told when it is first asked for."""
        response = self.responses.get(number)
        if response is None:
            self.responses = {n: r for n, r in self.responses.items() if n >= number - 1}
            response = self.responses[number] = Response(number, self.send, after=self.last_item)
            self.last_item = response.item_id
            await response.create()
        return response

    async def _say(self, number: int, event: Any) -> None:
        response = await self._created(number)
        match event:
            case TextDelta(text):
                await response.say(text)
            case AudioChunk():
                if self.reports and not response.sent:
                    taken = round((time.monotonic() - response.began) * 1000, 1)
                    await self.send(
                        "x.latency",
                        item_id=response.item_id,
                        silence_ms=self.silence_ms,
                        model_ms=taken,
                    )
                await response.sound(event)
            case Done():
                await response.finish(event)

    async def _guess_played(self) -> None:
        """Where the client does not tell what it played, the clock on the wall does."""
        then = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            passed, then = (now - then) * RATE, now
            response = self.responses.get(self.session.turn.number)
            if self.reports or response is None or response.flushed:
                continue
            response.played = min(response.played + passed, response.sent)
            await self.session.played(response.number, self._of_reply(int(response.played)))

    # ---- what was said, in writing ----------------------------------------------------------

    def _patience(self, said: Audio, late: threading.Event) -> float | None:
        if not isinstance(self.detection, wire.SemanticVad):
            return None
        return self.endings.silence(said, self.detection.eagerness, late)

    def _transcript(self, said: Audio, stop: threading.Event) -> str:
        """In a thread; step by step, so that other work goes on between, and a reply before it."""
        most = int(said.seconds * MOST_TOKENS) + MOST_TOKENS
        manner = replace(TRANSCRIBING, steps=min(most, TRANSCRIBING.steps))
        reply = self.host.speech.transcribe(said, manner=manner)
        try:
            while not stop.is_set() and self.host.step(lambda: next(reply, None)) is not None:
                while self.session.urgent and not stop.is_set():
                    time.sleep(0.02)
            return self.host.step(lambda: reply.text) if not stop.is_set() else ""
        finally:
            self.host.step(reply.close)

    async def _write_down(self, item: str, said: Audio) -> None:
        try:
            text = await asyncio.to_thread(self.endings.text, said, threading.Event())
        except LfmError as error:
            await self.send(
                "conversation.item.input_audio_transcription.failed",
                item_id=item,
                content_index=0,
                error=wire.told(error)["error"],
            )
            return
        await self.send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            content_index=0,
            transcript=text,
        )

    # ---- small things -----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The session as it is, in the words of the client's dialect."""
        return wire.session_told(
            self.beta,
            self.id,
            self.host.name,
            self.instructions or "",
            self.detection,
            self.transcribes,
            self.most,
            self.judge_why,
        )

    def _number(self, item: str) -> int:
        for number, response in self.responses.items():
            if response.item_id == item:
                return number
        raise BadInput(f"no item {item!r} of the last two responses; only those can be cut")

    def _of_reply(self, samples: int) -> int:
        """Samples of the wire -> of the reply."""
        return samples * self.host.speech.rate // RATE
