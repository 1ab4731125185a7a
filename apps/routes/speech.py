"""`/v1/audio/transcriptions` and `/v1/audio/speech`."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field

from apps.bodies import Body, Nothing, Refusal, SpeechBody, Transcript, Voice, Word
from apps.encoding import Encoding
from apps.service import Served, Service
from apps.streams import Streamed, unless_gone, without_progress
from apps.watch import note
from lfm2_mm import wire
from lfm2_mm.errors import BeyondLimit, LfmError
from lfm2_mm.sounds import seconds_of
from lfm2_mm.types import AudioChunk, Done, Event, TextDelta

MOST_SECONDS = 60 * 60  # of a recording to transcribe
MOST_NAMED = 50  # words in a header
# OpenAI's own voices, one of which its clients must name: here, the checkpoint's usual voice.
USUAL = (
    "alloy", "ash", "ballad", "cedar", "coral", "default", "echo", "fable", "marin", "nova", "onyx",
    "sage", "shimmer", "verse",
)  # fmt: skip
SPELLED = "x-spelled"  # header: words of the text that were spelled letter by letter
MEDIA = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 404, 413, 429)
}


class TranscriptionForm(Body):
    """As of OpenAI's audio/transcriptions."""

    file: UploadFile
    model: Word
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    stream: bool = False
    # Neutral values
    language: Literal["en", ""] = Field("en", description="the checkpoints hear English")
    prompt: Literal[""] = ""
    include: Nothing = Field(default=[])
    chunking_strategy: Literal["auto", ""] = "auto"


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["speech"])

    @routes.post(
        "/v1/audio/transcriptions",
        response_model=None,
        responses={
            200: {
                "model": Transcript,
                "content": {"text/plain": {}, "text/event-stream": {}},
            },
            **REFUSED,
        },
    )
    async def transcriptions(
        form: Annotated[TranscriptionForm, Form()], request: Request
    ) -> Response:
        """What is said in a recording (WAV, FLAC, Ogg, MP3, AIFF) of at most an hour."""
        model = service.find(form.model, "speech")
        note(request, model=model.name)
        recording = await form.file.read()
        begin = _transcribing(model, recording, form.temperature)
        events = without_progress(model.lane.stream(begin))
        if form.stream:
            first = await unless_gone(request, anext(events))
            return Streamed(_told(first, events, request), events, "text/event-stream")
        text = await unless_gone(request, _text(events, request))
        if form.response_format == "text":
            return PlainTextResponse(f"{text}\n")
        told: dict[str, Any] = {"text": text}
        if form.response_format == "verbose_json":
            told |= {"task": "transcribe", "duration": seconds_of(recording)}
        return JSONResponse(told)

    @routes.post(
        "/v1/audio/speech",
        response_model=None,
        responses={
            200: {"content": {kind: {} for kind in (*MEDIA.values(), "text/event-stream")}},
            **REFUSED,
        },
    )
    async def speech(body: SpeechBody, request: Request) -> Response:
        """A text read aloud; the sound is sent while it is made."""
        model = service.find(body.model, "speech")
        note(request, model=model.name)
        spelled: list[str] = []
        events = without_progress(model.lane.stream(_speaking(model, body, spelled)))
        first = await unless_gone(request, anext(events))
        headers = {SPELLED: ", ".join(map(quote, spelled[:MOST_NAMED]))} if spelled else {}
        kind = body.response_format or "mp3"
        made = _encoded(first, events, kind, request)
        if body.stream_format == "sse":
            return Streamed(_as_events(made), events, "text/event-stream", headers)
        return Streamed(_only_sound(made), events, MEDIA[kind], headers)

    return routes


# ---- transcribing ---------------------------------------------------------------------------


def _transcribing(model: Served, recording: bytes, temperature: float) -> Any:
    def begin() -> Iterator[Event]:
        from audio.conversation import TRANSCRIBING

        seconds = seconds_of(recording)
        if seconds > MOST_SECONDS:
            raise _too_long(seconds)
        text = replace(TRANSCRIBING.text, temperature=temperature)
        reply = model.engine.transcribe(recording, manner=replace(TRANSCRIBING, text=text))
        for event in reply:
            if reply.heard_s > MOST_SECONDS:  # its header told less
                raise _too_long(reply.heard_s)
            yield event

    return begin


def _too_long(seconds: float) -> BeyondLimit:
    return BeyondLimit(
        f"the recording lasts {seconds / 60:.0f} minutes; at most {MOST_SECONDS // 60} are "
        "transcribed at once: cut it"
    )


async def _text(events: AsyncGenerator[Event, None], request: Request) -> str:
    texts = []
    async for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, Done):
            note(request, done=event)
    return "".join(texts).strip()


async def _told(
    first: Event, events: AsyncGenerator[Event, None], request: Request
) -> AsyncGenerator[bytes, None]:
    """The transcript as it comes. An error on the way is told as the last event."""
    texts: list[str] = []
    event: Event | None = first
    try:
        while event is not None:
            if isinstance(event, TextDelta):
                texts.append(event.text)
                yield wire.write_sse({"type": "transcript.text.delta", "delta": event.text})
            elif isinstance(event, Done):
                note(request, done=event)
            event = await anext(events, None)
    except LfmError as error:
        yield wire.write_sse({"type": "error", "error": {"message": str(error)}})
        return
    yield wire.write_sse({"type": "transcript.text.done", "text": "".join(texts).strip()})


# ---- speaking -------------------------------------------------------------------------------


def _speaking(model: Served, body: SpeechBody, spelled: list[str]) -> Any:
    """`spelled` holds, once it has begun, the words that the checkpoint lacks."""
    voice = body.voice.id if isinstance(body.voice, Voice) else body.voice
    if voice is None or voice.lower() in USUAL or body.instructions is not None:
        voice = None

    def begin() -> Iterator[Event]:
        from apps.spoken import at_rate
        from audio.conversation import SPEAKING

        manner = replace(SPEAKING, seed=body.seed)
        reply = model.engine.speak(
            body.input, voice=voice, system=body.instructions, strict=body.strict, manner=manner
        )
        spelled.extend(reply.spelled)
        return at_rate(reply, wire.RATE)

    return begin


async def _encoded(
    first: Event, events: AsyncGenerator[Event, None], kind: str, request: Request
) -> AsyncGenerator[bytes | Done, None]:
    """The sound as bytes of a file of `kind`, and how it ended."""
    encoding = Encoding(kind, wire.RATE)
    event: Event | None = first
    while event is not None:
        if isinstance(event, AudioChunk) and (data := encoding.push(event.samples)):
            yield data
        elif isinstance(event, Done):
            note(request, done=event)
            if data := encoding.finish():
                yield data
            yield event
        event = await anext(events, None)


async def _only_sound(made: AsyncGenerator[bytes | Done, None]) -> AsyncGenerator[bytes, None]:
    async for piece in made:
        if isinstance(piece, bytes):
            yield piece


async def _as_events(made: AsyncGenerator[bytes | Done, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in made:
            if isinstance(piece, bytes):
                audio = base64.b64encode(piece).decode()
                yield wire.write_sse({"type": "speech.audio.delta", "audio": audio})
            else:
                usage = piece.usage
                told = {
                    "input_tokens": usage.prompt_tokens,
                    "output_tokens": usage.completion_tokens,
                    "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                }
                yield wire.write_sse({"type": "speech.audio.done", "usage": told})
    except LfmError as error:
        yield wire.write_sse({"type": "error", "error": {"message": str(error)}})
