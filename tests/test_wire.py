"""OpenAI's JSON and our types: there and back again, and what is refused on the way."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pil

from lfm2_mm import wire
from lfm2_mm.errors import BadInput, BadPicture, Unreadable
from lfm2_mm.types import (
    Audio,
    AudioChunk,
    Done,
    Event,
    Image,
    Message,
    Sampling,
    Text,
    TextDelta,
    Usage,
    text_of,
)

TEXTS = st.text(max_size=40)
NOISE = np.random.default_rng(0)


def pixels(height: int = 9, width: int = 13) -> np.ndarray:
    return NOISE.integers(0, 255, (height, width, 3), dtype=np.uint8)


def file(kind: str, orientation: int = 1, **how: Any) -> bytes:
    held = io.BytesIO()
    exif = Pil.Exif()
    exif[0x0112] = orientation
    Pil.fromarray(pixels()).save(held, kind, exif=exif, **how)
    return held.getvalue()


def again(message: Message) -> Message:
    """A message after a journey as JSON text."""
    return wire.read_message(json.loads(json.dumps(wire.write_message(message))))


@given(st.sampled_from(["system", "user", "assistant"]), st.lists(TEXTS, min_size=1, max_size=3))
def test_texts_come_back(role: Any, texts: list[str]) -> None:
    message = Message.of(role, *texts)
    found = again(message)
    assert (found.role, found.text) == (role, message.text)


def test_what_is_all_text_is_a_plain_string() -> None:
    assert wire.write_message(Message.user("a", "b")) == {"role": "user", "content": "ab"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pictures_come_back_pixel_for_pixel(kind: str, orientation: int) -> None:
    if kind == "GIF" and orientation == 6:
        pytest.skip("GIF has no orientation")
    image = Image.open(file(kind, orientation))
    text, found = again(Message.user("look", image)).parts
    assert text == Text("look") and isinstance(found, Image)
    assert (found.height, found.width) == (image.height, image.width)
    np.testing.assert_array_equal(found.decode(), image.decode())


def test_a_file_that_every_reader_sees_upright_is_sent_as_it_is() -> None:
    data = file("JPEG", quality=70)
    assert base64.b64decode(wire.write_picture(Image.open(data)).partition(",")[2]) == data


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_recordings_come_back(rate: int) -> None:
    audio = Audio(NOISE.uniform(-1, 1, 1000).astype(np.float32), rate)
    (found,) = again(Message.user(audio)).parts
    assert isinstance(found, Audio) and found.rate == rate
    np.testing.assert_allclose(found.samples, audio.samples, atol=1 / 32767)  # 16 bits a sample


@given(st.binary(max_size=400).map(lambda b: b[: len(b) // 2 * 2]))
def test_pcm_comes_back_bit_for_bit(data: bytes) -> None:
    lowest = (-32768).to_bytes(2, "little", signed=True)  # its own negative cannot be said
    data = b"".join(p for p in (data[i : i + 2] for i in range(0, len(data), 2)) if p != lowest)
    assert wire.write_pcm(wire.read_pcm(data)) == data


SETTINGS = st.builds(
    Sampling,
    temperature=st.floats(0.01, 2),
    top_k=st.integers(0, 100),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    max_tokens=st.integers(1, 1000),
    seed=st.none() | st.integers(0, 1 << 40),
)


@given(SETTINGS)
def test_sampling_comes_back_over_any_advice_that_cuts_nothing(sampling: Sampling) -> None:
    assert wire.read_sampling(wire.write_sampling(sampling), Sampling(0.9)) == sampling


def test_temperature_zero_drops_the_advice() -> None:
    advice = Sampling(0.3, min_p=0.15, repetition_penalty=1.05, max_tokens=77)
    assert wire.read_sampling({"temperature": 0}, advice) == Sampling(0.0, max_tokens=77)
    assert wire.read_sampling({"top_k": 5}, advice).repetition_penalty == 1.05
    assert wire.read_sampling({"max_completion_tokens": 3}, advice).max_tokens == 3


def test_llama_names_the_penalty_otherwise() -> None:
    written = wire.write_sampling(Sampling(repetition_penalty=1.2), llama=True)
    assert written["repeat_penalty"] == 1.2 and "repetition_penalty" not in written


USAGES = st.builds(Usage, *[st.integers(0, 1 << 20)] * 4)
EVENTS = st.lists(TEXTS.filter(bool).map(TextDelta), max_size=5)
ENDS = st.builds(Done, st.sampled_from(["stop", "length"]), USAGES)


@given(EVENTS, ENDS)
def test_replies_come_back(deltas: list[Event], done: Done) -> None:
    chunks = wire.Chunks("id", "model", 0, usage=True)
    sent = [chunks.first(), *(c for e in [*deltas, done] for c in chunks.of(e))]
    lines = b"".join(map(wire.write_sse, sent)) + wire.SSE_END
    found = list(wire.read_events(wire.read_sse(lines.decode().splitlines())))
    assert found[:-1] == deltas
    assert isinstance(found[-1], Done)
    assert (found[-1].reason, found[-1].usage) == (done.reason, done.usage)
    whole = json.loads(json.dumps(wire.write_completion("id", "m", 0, text_of(deltas), done)))
    text, end = wire.read_completion(whole)
    assert (text, end.reason, end.usage) == (text_of(deltas), done.reason, done.usage)


def test_spoken_replies_come_back() -> None:
    sound = wire.read_pcm(wire.write_pcm(NOISE.uniform(-1, 1, 480).astype(np.float32)))
    events: list[Event] = [TextDelta("Hi"), AudioChunk(0, sound, wire.RATE), Done("stop")]
    chunks = wire.Chunks("id", "model", 0, audio=True)
    text, chunk, done = wire.read_events([c for e in events for c in chunks.of(e)])
    assert text == events[0] and isinstance(chunk, AudioChunk) and isinstance(done, Done)
    np.testing.assert_array_equal(chunk.samples, sound)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user"}, "no content"),
        ({"role": "robot", "content": ""}, "known are system"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "the role is 'tool'"),
        ({"role": "user", "content": 5}, "neither a text nor a list"),
        ({"role": "user", "content": "x", "name": "Ann"}, "name of a message"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "got type 'file'"),
        ({"role": "user", "content": ["x"]}, "got type None"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "got type 'text'"),
    ],
)
def test_what_cannot_be_used_is_named(message: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=f"messages\\[1\\]: .*{told}"):
        wire.read_messages([{"role": "user", "content": "fine"}, message])


def test_empty_extras_that_clients_send_unasked_are_taken() -> None:
    given = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "name": None}
    assert wire.read_message(given) == Message.assistant("x")


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "https://x.example/a.png", 5])
def test_no_file_is_opened_and_no_address_visited(url: Any) -> None:
    with pytest.raises(BadInput, match="data URLs"):
        wire.read_part({"type": "image_url", "image_url": {"url": url}})


def test_damaged_pictures_and_recordings_keep_their_kind_of_error() -> None:
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(BadPicture, match=r"messages\[0\]"):
        wire.read_messages([{"role": "user", "content": [bad]}])
    silent = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    with pytest.raises(Unreadable, match=r"messages\[0\]"):
        wire.read_messages([{"role": "user", "content": [silent]}])
    with pytest.raises(BadInput, match="base64"):
        wire.read_bytes("*", "data")


def test_a_stream_may_hold_comments_and_errors() -> None:
    lines = [": ping", "", "event: x", 'data: {"error": {"message": "too hot", "code": 5}}']
    with pytest.raises(BadInput, match="too hot"):
        list(wire.read_events(wire.read_sse(lines)))
    with pytest.raises(BadInput, match="no JSON"):
        list(wire.read_sse(["data: <html>"]))
    with pytest.raises(BadInput, match="no object"):
        list(wire.read_sse(["data: [1]"]))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"message": "m"}, "m"),
        ({"error": {"message": "m"}}, "m"),
        ({"detail": "d"}, "d"),
        ("plain", "plain"),
        ({"odd": 1}, "{'odd': 1}"),
    ],
)
def test_errors_in_any_shape(error: Any, told: str) -> None:
    assert wire.told(error) == told
