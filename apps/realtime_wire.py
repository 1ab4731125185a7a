"""The events of OpenAI's Realtime protocol: what clients may send, and what beta clients call ours.

Every field is one that works, or that may say "off"; any other is refused by name.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lfm2_mm.errors import BadInput

RATE = 24_000  # Hz of pcm16, both ways
MOST_BYTES = 15 << 20  # of audio in one event


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PcmFormat(Strict):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class ServerVad(Strict):
    """A turn ends after so much silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=100, le=5000)
    create_response: bool = True
    interrupt_response: Literal[True] = True
    idle_timeout_ms: None = None


class SemanticVad(Strict):
    """A turn ends earlier or later by what was said in it."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: Literal[True] = True


Detection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]
# Names that clients send; each is the checkpoint's one voice.
Voice = Literal[
    "default",
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "marin",
    "sage",
    "shimmer",
    "verse",
]


class Transcription(Strict):
    """Whether what was said is written down; the model is always the session's own."""

    model: str | None = None
    language: None = None
    prompt: None = None


class Input(Strict):
    format: PcmFormat | None = None
    turn_detection: Detection | None = None
    transcription: Transcription | None = None
    noise_reduction: None = None


class Output(Strict):
    format: PcmFormat | None = None
    voice: Voice | None = None
    speed: float | None = Field(default=None, ge=1.0, le=1.0)


class Sound(Strict):
    input: Input = Input()
    output: Output = Output()


class Settings(Strict):
    """`session` of session.update, in the current form and in that of the beta."""

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    instructions: str | None = Field(None, max_length=20_000)
    output_modalities: list[Literal["audio"]] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None = None
    audio: Sound = Sound()
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    include: None = None
    prompt: None = None
    tracing: None = None
    truncation: Literal["auto"] | None = None
    x_playback: bool | None = None  # ours: the client tells how far it played, by x.playback

    # The beta's own:
    modalities: list[Literal["audio", "text"]] | None = None
    voice: Voice | None = None
    input_audio_format: Literal["pcm16"] | None = None
    output_audio_format: Literal["pcm16"] | None = None
    input_audio_transcription: Transcription | None = None
    input_audio_noise_reduction: None = None
    turn_detection: Detection | None = None
    max_response_output_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None = None


class Event(Strict):
    event_id: str | None = Field(None, max_length=512)


class SessionUpdate(Event):
    type: Literal["session.update"]
    session: Settings


class Append(Event):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(Event):
    type: Literal["input_audio_buffer.commit"]


class Clear(Event):
    type: Literal["input_audio_buffer.clear"]


class Wanted(Strict):
    """Of one response; all else is the session's."""

    output_modalities: list[Literal["audio"]] | None = None
    modalities: list[Literal["audio", "text"]] | None = None
    conversation: Literal["auto"] | None = None


class Create(Event):
    type: Literal["response.create"]
    response: Wanted | None = None


class Cancel(Event):
    type: Literal["response.cancel"]
    response_id: str | None = None


class TextPart(Strict):
    type: Literal["input_text"]
    text: str = Field(min_length=1, max_length=20_000)


class AudioPart(Strict):
    type: Literal["input_audio"]
    audio: str
    transcript: str | None = None


class Item(Strict):
    type: Literal["message"]
    role: Literal["user"]
    content: list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] = Field(
        min_length=1, max_length=16
    )
    id: str | None = Field(None, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed"] | None = None


class ItemCreate(Event):
    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: None = None


class Truncate(Event):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: Literal[0] = 0
    audio_end_ms: int = Field(ge=0)


class Playback(Event):
    """Ours: of this item so many samples were played."""

    type: Literal["x.playback"]
    item_id: str
    samples: int = Field(ge=0)


ClientEvent = Annotated[
    SessionUpdate | Append | Commit | Clear | Create | Cancel | ItemCreate | Truncate | Playback,
    Field(discriminator="type"),
]
CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(ClientEvent)

BETA_NAMES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": None,  # the beta has none
}


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"


def detection_of(settings: Settings) -> tuple[bool, ServerVad | SemanticVad | None]:
    """Whether turn detection was told, and which; None is none."""
    if "turn_detection" in settings.model_fields_set:
        return True, settings.turn_detection
    return "turn_detection" in settings.audio.input.model_fields_set, (
        settings.audio.input.turn_detection
    )


def transcription_of(settings: Settings) -> tuple[bool, Transcription | None]:
    """Likewise of transcription."""
    if "input_audio_transcription" in settings.model_fields_set:
        return True, settings.input_audio_transcription
    return "transcription" in settings.audio.input.model_fields_set, (
        settings.audio.input.transcription
    )


def told(
    error: Exception | str, event_id: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error event; the session goes on."""
    return {
        "type": "error",
        "event_id": new_id("event"),
        "error": {
            "type": "invalid_request_error",
            "code": code,
            "message": str(error),
            "param": None,
            "event_id": event_id,
        },
    }


def session_told(
    beta: bool,
    session_id: str,
    model: str,
    instructions: str,
    detection: ServerVad | SemanticVad | None,
    transcribes: bool,
    most: int | str,
    detector: str,
) -> dict[str, Any]:
    """`session` of session.created and session.updated: what holds, not what was asked."""
    turns = detection.model_dump() if detection is not None else None
    transcription = {"model": model} if transcribes else None
    common = {
        "id": session_id,
        "object": "realtime.session",
        "model": model,
        "instructions": instructions,
        "tools": [],
        "tool_choice": "none",
        "x_detector": detector,
    }
    if beta:
        return {
            **common,
            "modalities": ["audio", "text"],
            "voice": "default",
            "input_audio_format": "pcm16",
            "output_audio_format": "pcm16",
            "input_audio_transcription": transcription,
            "turn_detection": turns,
            "max_response_output_tokens": most,
        }
    pcm = {"type": "audio/pcm", "rate": RATE}
    return {
        **common,
        "type": "realtime",
        "output_modalities": ["audio"],
        "max_output_tokens": most,
        "audio": {
            "input": {
                "format": pcm,
                "turn_detection": turns,
                "transcription": transcription,
                "noise_reduction": None,
            },
            "output": {"format": pcm, "voice": "default", "speed": 1.0},
        },
    }


def parsed(text: str) -> Any:
    """A client's event. Raises BadInput that names the first thing wrong."""
    try:
        return CLIENT_EVENT.validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(place) for place in first["loc"]) or "the event"
            raise BadInput(f"{where}: {first['msg']}") from error
        raise BadInput(f"this is no event in JSON: {error}") from error


def samples_of(text: str) -> np.ndarray:
    """Base64 of pcm16 -> float32. Raises BadInput."""
    try:
        given = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"audio is base64 of 16-bit samples; this is not: {error}") from error
    if len(given) % 2:
        raise BadInput(f"audio is 16-bit samples; {len(given)} bytes are no whole number of them")
    if len(given) > MOST_BYTES:
        raise BadInput(f"an event brings at most {MOST_BYTES >> 20} MiB of audio")
    return np.frombuffer(given, "<i2").astype(np.float32) / 32768


def pcm16(samples: np.ndarray) -> str:
    """(n,) float32 -> base64 of 16-bit samples; louder than full scale is clipped."""
    whole = np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2")
    return base64.b64encode(whole.tobytes()).decode()
