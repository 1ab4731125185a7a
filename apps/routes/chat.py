"""`/v1/chat/completions`: texts, pictures and recordings in; text, and sound where it is asked."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from apps.bodies import ChatBody, Completion, Refusal
from apps.service import Served, Service
from apps.streams import Streamed, unless_gone, until_stop, without_progress
from apps.watch import note
from lfm2_mm import wire
from lfm2_mm.errors import BadInput, LfmError
from lfm2_mm.types import Audio, AudioChunk, Done, Event, Message, Sampling, TextDelta

if TYPE_CHECKING:
    from lfm2_mm.registry import Kind
    from vision import Chat

KINDS: tuple[Kind, ...] = ("chat", "vision", "speech")
BUDGETS = {"low": "fast", "auto": "balanced", "high": "quality"}  # detail -> preset
REMEMBERED = 1_000  # transcripts of spoken replies, which clients refer to by id
EXPIRES_S = 3_600
CONTAINERS = {"opus": "opus", "pcm16": "pcm"}  # names of formats that differ


class Transcripts:
    """What was said in spoken replies, by id; the oldest go."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, reply: str, text: str) -> None:
        with self._lock:
            self._texts[reply] = text
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)

    def find(self, reply: str) -> str:
        """Raises BadInput where it is not known, or no longer."""
        with self._lock:
            if reply not in self._texts:
                raise BadInput(f"no spoken reply {reply!r} is remembered; send its text as content")
            return self._texts[reply]


@dataclass(frozen=True)
class Asked:
    """A request, checked and read."""

    model: Served
    messages: Sequence[Message]
    sampling: Sampling
    stops: Sequence[str]
    detail: str  # of the pictures, the finest that is asked for
    aloud: str | None  # the format of the sound, where some is asked

    def begin(self) -> Iterator[Event]:
        """Start the reply; runs in the model's lane."""
        if self.model.kind == "speech":
            from apps.spoken import manner_of, replied
            from audio.conversation import CONVERSING

            manner = manner_of(CONVERSING, self.sampling)
            events = replied(self.model.engine, self.messages, manner, wire.RATE)
            return until_stop(events, self.stops, 0) if self.stops else events
        engine = self.model.engine
        if self.model.kind == "vision" and self.detail != "auto":
            engine = _under(engine, self.detail)
        events = engine.stream(self.messages, self.sampling)
        if not self.stops:
            return events
        prompt = engine.prompt(self.messages) if hasattr(engine, "prompt") else ()
        return until_stop(events, self.stops, len(prompt))


def _under(engine: Chat, detail: str) -> Chat:
    from vision.tiling import PRESETS

    return engine.at(PRESETS[BUDGETS[detail]])


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["chat"])
    transcripts = Transcripts()

    @routes.post(
        "/v1/chat/completions",
        response_model=None,
        responses={
            200: {"model": Completion, "content": {"text/event-stream": {}}},
            400: {"model": Refusal},
            404: {"model": Refusal},
            413: {"model": Refusal},
            429: {"model": Refusal},
        },
    )
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """The reply to a conversation, whole or as server-sent events.

        The work stops when the client leaves. Pictures come as data URLs.
        """
        asked = await asyncio.to_thread(_read, body, service, transcripts)
        note(request, model=asked.model.name)
        events = without_progress(asked.model.lane.stream(asked.begin))
        reply = f"chatcmpl-{uuid.uuid4().hex}"
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            chunks = wire.Chunks(
                reply, asked.model.name, int(time.time()), usage=usage, audio=bool(asked.aloud)
            )
            # Errors that come before the first word still have a status of their own.
            first = await unless_gone(request, anext(events))
            sent = _sent(first, events, chunks, asked, transcripts, request)
            return Streamed(sent, events, "text/event-stream")
        whole = await unless_gone(request, _whole(events, asked, request))
        return JSONResponse(_completion(reply, asked, whole, transcripts))

    return routes


def _read(body: ChatBody, service: Service, transcripts: Transcripts) -> Asked:
    """Check the request and open its pictures and recordings. Raises what makes it impossible."""
    model = service.find(body.model, *KINDS)
    aloud = _aloud(body, model)
    told = [
        m.model_dump(exclude_none=True, exclude={"annotations", "tool_calls"})
        for m in body.messages
    ]
    for message in told:
        spoken = message.pop("audio", None)
        if spoken and "content" not in message:
            message["content"] = transcripts.find(spoken["id"])
    advice = model.engine.advice if model.kind != "speech" else Sampling(0.0, max_tokens=1024)
    sampling = wire.read_sampling(body.model_dump(), advice)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Asked(model, wire.read_messages(told), sampling, stops, _detail(told), aloud)


def _aloud(body: ChatBody, model: Served) -> str | None:
    """The format of the sound that is asked for. Raises BadInput where there can be none."""
    if "audio" not in (body.modalities or ()):
        if body.audio is not None:
            raise BadInput('`audio` is given without modalities ["text", "audio"]')
        return None
    if model.kind != "speech":
        raise BadInput(f"{model.name} does not speak: leave modalities out, or ask a speech model")
    if body.audio is None:
        raise BadInput('modalities with "audio" need `audio`: {"format": "wav", "voice": …}')
    if body.stream and body.audio.format != "pcm16":
        raise BadInput('a stream of sound is pcm16: say {"audio": {"format": "pcm16"}}')
    return body.audio.format


def _detail(messages: Sequence[dict[str, Any]]) -> str:
    found = {"auto"}
    for message in messages:
        content = message["content"] if isinstance(message.get("content"), list) else []
        urls = [part["image_url"] for part in content if part["type"] == "image_url"]
        details = {u.get("detail") or "auto" if isinstance(u, dict) else "auto" for u in urls}
        found = details or found
    return next(detail for detail in ("high", "auto", "low") if detail in found)


async def _sent(
    first: Event,
    events: AsyncGenerator[Event, None],
    chunks: wire.Chunks,
    asked: Asked,
    transcripts: Transcripts,
    request: Request,
) -> AsyncGenerator[bytes, None]:
    """The reply as server-sent events. An error on the way is told as the last of them."""
    yield wire.write_sse(chunks.first())
    said: list[str] = []
    event: Event | None = first
    try:
        while event is not None:
            if isinstance(event, TextDelta):
                said.append(event.text)
            if isinstance(event, Done):
                note(request, done=event)
            if asked.aloud or not isinstance(event, AudioChunk):
                for chunk in chunks.of(event):
                    yield wire.write_sse(chunk)
            event = await anext(events, None)
    except LfmError as error:
        yield wire.write_sse({"error": {"message": str(error), "type": "server_error"}})
    if asked.aloud:
        transcripts.keep(chunks.reply, "".join(said))
    yield wire.SSE_END


@dataclass(frozen=True)
class Whole:
    """A reply that is done."""

    text: str
    sound: np.ndarray
    done: Done


async def _whole(events: AsyncGenerator[Event, None], asked: Asked, request: Request) -> Whole:
    texts: list[str] = []
    sound: list[np.ndarray] = [np.zeros(0, np.float32)]
    done = Done("stop")
    try:
        async for event in events:
            if isinstance(event, TextDelta):
                texts.append(event.text)
            elif isinstance(event, AudioChunk):
                sound.append(event.samples)
            elif isinstance(event, Done):
                done = event
    finally:
        await events.aclose()
    note(request, done=done)
    return Whole("".join(texts), np.concatenate(sound) if asked.aloud else sound[0], done)


def _completion(reply: str, asked: Asked, whole: Whole, transcripts: Transcripts) -> dict[str, Any]:
    now = int(time.time())
    sound = None
    if asked.aloud:
        transcripts.keep(reply, whole.text)
        kind = CONTAINERS.get(asked.aloud, asked.aloud)
        recording = wire.write_recording(Audio(whole.sound, wire.RATE), kind)
        sound = {
            "id": reply,
            "data": base64.b64encode(recording).decode(),
            "transcript": whole.text,
            "expires_at": now + EXPIRES_S,
        }
    return wire.write_completion(reply, asked.model.name, now, whole.text, whole.done, sound)
