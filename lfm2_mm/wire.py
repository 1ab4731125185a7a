"""OpenAI's chat JSON <-> our types, both directions, once: for the server and for the client.

`read_…` takes JSON that others wrote (parsed, so dicts and lists), `write_…` makes such JSON.
Knows no HTTP. Pictures travel as data URLs, recordings as base64 files, sound out as pcm16.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lfm2_mm.errors import BadInput
from lfm2_mm.types import (
    Audio,
    AudioChunk,
    Done,
    Event,
    Image,
    Message,
    Part,
    Role,
    Sampling,
    Text,
    TextDelta,
    Usage,
)

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # its name for newer OpenAI models
    "user": "user",
    "assistant": "assistant",
}
RATE = 24_000  # Hz of pcm16, as the API fixes it
FORMATS = ("wav", "mp3", "flac", "ogg")
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
LLAMA = {"repetition_penalty": "repeat_penalty"}  # llama.cpp's own names
AS_IT_IS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}  # every server reads these


# ---- messages -------------------------------------------------------------------------------


def read_messages(given: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages of a request. Raises BadInput, naming the message, and what opening raises."""
    messages = []
    for number, message in enumerate(given):
        try:
            messages.append(read_message(message))
        except BadInput as error:
            error.args = (f"messages[{number}]: {error}", *error.args[1:])
            raise
    return messages


def read_message(given: Mapping[str, Any]) -> Message:
    """One message. Fields without meaning here are an error, unless they are null or empty."""
    role = ROLES.get(str(given.get("role")))
    if role is None:
        raise BadInput(f"the role is {given.get('role')!r}; known are {', '.join(ROLES)}")
    used = {key for key, value in given.items() if value not in (None, [], {}, "")}
    if foreign := used - {"role", "content"}:
        raise BadInput(f"{', '.join(sorted(foreign))} of a message cannot be used here")
    content = given.get("content")
    if content is None:
        raise BadInput("the message has no content; give a text or a list of parts")
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, list):
        raise BadInput("content is neither a text nor a list of parts")
    return Message(role, tuple(read_part(part) for part in content))


def write_message(message: Message) -> dict[str, Any]:
    """A plain string as content where all parts are text: every server takes that."""
    if all(isinstance(part, Text) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [write_part(part) for part in message.parts]}


def read_part(given: Any) -> Part:
    """A text, picture or recording of a content list. Raises BadInput, BadPicture, Unreadable."""
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind in ("text", "image_url", "input_audio") and kind in given:
        value = given[kind]
        if kind == "text" and isinstance(value, str):
            return Text(value)
        if kind == "image_url":
            return read_picture(value.get("url") if isinstance(value, Mapping) else value)
        if kind == "input_audio" and isinstance(value, Mapping):
            return Audio.open(read_bytes(value.get("data"), "input_audio.data"))
    raise BadInput(
        'a part is {"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": …}} or '
        f'{{"type": "input_audio", "input_audio": {{"data": …, "format": …}}}}; got type {kind!r}'
    )


def write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": write_picture(part)}}
    data = base64.b64encode(write_recording(part, "wav")).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def read_picture(url: Any) -> Image:
    """The picture in a data URL. Nothing is downloaded and no file opened for whoever asks."""
    if not isinstance(url, str) or not url[:5].lower() == "data:":
        raise BadInput(
            "pictures come as data URLs (data:image/png;base64,…): addresses are not visited, and "
            f"files of this machine not opened; got {str(url)[:40]!r}"
        )
    return Image.open(url)


def write_picture(image: Image) -> str:
    """A data URL of the same pixels: the file itself where every reader sees it upright."""
    from lfm2_mm.pictures import Packed

    source = image.source
    if isinstance(source, Packed) and source.orientation == 1 and source.profile is None:
        for magic, kind in AS_IT_IS.items():
            if source.data.startswith(magic):
                return f"data:image/{kind};base64,{base64.b64encode(source.data).decode()}"
    from PIL import Image as Pil

    held = io.BytesIO()
    Pil.fromarray(image.decode()).save(held, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def write_recording(audio: Audio, kind: str) -> bytes:
    """A file of `kind`: wav, mp3, flac, ogg; or raw little-endian pcm16. 16 bits a sample.

    Raises BadInput for another kind.
    """
    samples = np.clip(audio.samples, -1.0, 1.0)
    if kind in ("pcm", "pcm16"):
        return write_pcm(samples)
    if kind not in FORMATS:
        raise BadInput(f"sound is not written as {kind!r}; known are {', '.join(FORMATS)}, pcm")
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, samples, audio.rate, format=kind.upper())
    return held.getvalue()


def write_pcm(samples: np.ndarray) -> bytes:
    """float32 -1..1 -> little-endian 16-bit integers."""
    return np.round(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def read_pcm(data: bytes) -> np.ndarray:
    """Little-endian 16-bit integers -> float32 -1..1."""
    return (np.frombuffer(data, "<i2") / 32767).astype(np.float32)


def read_bytes(given: Any, what: str) -> bytes:
    """base64, also as a data URL. Raises BadInput, calling it `what`."""
    if not isinstance(given, str) or not given:
        raise BadInput(f"{what} is missing; it is a file in base64")
    packed = given.partition(",")[2] if given[:5].lower() == "data:" else given
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"{what} is not valid base64: {error}") from error


# ---- sampling and usage ---------------------------------------------------------------------


def read_sampling(given: Mapping[str, Any], advice: Sampling) -> Sampling:
    """A request's settings over the checkpoint's advice; temperature 0 drops the advice.

    Raises BadInput for values out of bounds.
    """
    names = {"max_completion_tokens": "max_tokens", **{name: name for name in SAMPLED}}
    names |= {"max_tokens": "max_tokens"}
    found = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
    if found.get("temperature") == 0:
        advice = Sampling(temperature=0.0, max_tokens=advice.max_tokens)
    try:
        return replace(advice, **found)
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def write_sampling(sampling: Sampling, *, llama: bool = False) -> dict[str, Any]:
    """What a request must say to have this sampling; what cuts nothing is left out.

    llama: under llama.cpp's names.
    """
    neutral = Sampling()
    written: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    for name in SAMPLED[1:]:
        if getattr(sampling, name) != getattr(neutral, name):
            written[LLAMA.get(name, name) if llama else name] = getattr(sampling, name)
    return written


def read_usage(given: Any) -> Usage:
    """Zeros where a server tells nothing."""
    if not isinstance(given, Mapping):
        return Usage(0, 0)
    details = given.get("prompt_tokens_details") or {}
    return Usage(
        int(given.get("prompt_tokens") or 0),
        int(given.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(details.get("image_tokens") or 0),
    )


def write_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.reused_tokens,
            "image_tokens": usage.image_tokens,
        },
    }


# ---- replies --------------------------------------------------------------------------------


def read_events(chunks: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    """The events in the chunks of a streamed reply; Done comes last, whatever is left out.

    Raises BadInput for an error that is told in the stream.
    """
    done = Done("stop")
    for chunk in chunks:
        if error := chunk.get("error"):
            raise BadInput(f"the server broke off: {told(error)}")
        if chunk.get("usage"):
            done = replace(done, usage=read_usage(chunk["usage"]))
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            sound = delta.get("audio") or {}
            if text := delta.get("content") or sound.get("transcript"):
                yield TextDelta(text)
            if data := sound.get("data"):
                yield AudioChunk(0, read_pcm(read_bytes(data, "delta.audio.data")), RATE)
            if reason := choice.get("finish_reason"):
                done = replace(done, reason="length" if reason == "length" else "stop")
    yield done


def told(error: Any) -> str:
    """The message of an error object, in whichever of the usual shapes."""
    if isinstance(error, Mapping):
        inner = error.get("message") or error.get("error") or error.get("detail") or error
        return told(inner) if isinstance(inner, Mapping) and inner is not error else str(inner)
    return str(error)


class Chunks:
    """Events -> chunks of one streamed reply. `audio`: text is the transcript of the sound."""

    def __init__(
        self, reply: str, model: str, created: int, *, usage: bool = False, audio: bool = False
    ) -> None:
        """reply: an id of the reply. usage: whether a last chunk tells it."""
        self.reply, self.model, self.created = reply, model, created
        self.usage, self.audio = usage, audio

    def first(self) -> dict[str, Any]:
        """Who speaks; goes before everything else."""
        return self._chunk({"role": "assistant", "content": None if self.audio else ""})

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event; progress has none."""
        if isinstance(event, TextDelta):
            said = {"audio": {"id": self.reply, "transcript": event.text}}
            yield self._chunk(said if self.audio else {"content": event.text})
        elif isinstance(event, AudioChunk):
            data = base64.b64encode(write_pcm(event.samples)).decode()
            yield self._chunk({"audio": {"id": self.reply, "data": data}})
        elif isinstance(event, Done):
            yield self._chunk({}, finish_of(event))
            if self.usage:
                yield {**self._head(), "choices": [], "usage": write_usage(event.usage)}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.reply,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head(), "choices": [choice], **({"usage": None} if self.usage else {})}


def finish_of(done: Done) -> Literal["stop", "length"]:
    return "length" if done.reason == "length" else "stop"


def write_completion(
    reply: str, model: str, created: int, text: str, done: Done, sound: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A whole reply. sound: its `audio` object; the text is then its transcript."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if sound else text,
        "refusal": None,
    }
    if sound:
        message["audio"] = sound
    choice = {"index": 0, "message": message, "finish_reason": finish_of(done), "logprobs": None}
    return {
        "id": reply,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": write_usage(done.usage),
    }


def read_completion(given: Mapping[str, Any]) -> tuple[str, Done]:
    """The text of a whole reply, and how it ended."""
    choice = given["choices"][0]
    message = choice["message"]
    text = message.get("content") or (message.get("audio") or {}).get("transcript") or ""
    reason: Literal["stop", "length"] = (
        "length" if choice.get("finish_reason") == "length" else "stop"
    )
    return text, Done(reason, read_usage(given.get("usage")))


# ---- server-sent events ---------------------------------------------------------------------


def read_sse(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of an event stream, up to [DONE]. Raises BadInput for anything else."""
    for line in lines:
        name, _, value = line.partition(":")
        if name != "data" or not value.strip():
            continue  # comments keep the line open; names of events say nothing more
        if value.strip() == "[DONE]":
            return
        try:
            found = json.loads(value)
        except ValueError as error:
            raise BadInput(f"the server sent no JSON in its stream: {value[:80]!r}") from error
        if not isinstance(found, dict):
            raise BadInput(f"the server sent no object in its stream: {value[:80]!r}")
        yield found


def write_sse(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


SSE_END = b"data: [DONE]\n\n"
