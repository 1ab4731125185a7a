"""The HTTP interface, asked by the clients people have: the openai package, httpx."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image as Pil

from apps.service import Service
from lfm2_mm import wire
from lfm2_mm.types import Audio
from tests import served, tiny_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    models = served.models(folder)
    return Service(models, served.indexes(folder, served.encoder(folder)))


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served.serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as made:
        yield made


def png(height: int = 40, width: int = 60) -> str:
    held = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Pil.fromarray(pixels).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def wav(seconds: float = 0.7) -> bytes:
    return wire.write_recording(Audio(tiny_audio.recording(seconds, 16_000, 1), 16_000), "wav")


def heard(seconds: float = 0.7) -> dict[str, Any]:
    data = base64.b64encode(wav(seconds)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def asking(*parts: Any, **how: Any) -> dict[str, Any]:
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    message = {"role": "user", "content": content}
    return {"model": "echo", "messages": [message], "max_tokens": 12, **how}


SEED = 3  # of speech: with other ones the small random model may stay silent
LOOK = {"type": "text", "text": "What is this?"}


# ---- what is here ---------------------------------------------------------------------------


def test_models_are_listed_and_told(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["tiny-vl", "tiny-audio", "tiny-colbert", "tiny-chat", "echo"]
    assert client.models.retrieve("echo").object == "model"
    with pytest.raises(openai.NotFoundError, match="tiny-vl"):
        client.models.retrieve("gpt-9")


def test_metrics_count_what_was_asked(http: httpx.Client) -> None:
    http.post("v1/chat/completions", json=asking("one two"))
    text = http.get("metrics").text
    assert 'lfm2_mm_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'lfm2_mm_tokens_total{kind="completion",model="echo"}' in text
    assert 'lfm2_mm_lane_jobs{lane="tiny-vl"} 0.0' in text


# ---- chat -----------------------------------------------------------------------------------


def test_a_reply_whole_and_streamed_is_the_same(client: openai.OpenAI) -> None:
    asked = asking("Say something long, please", model="tiny-chat", temperature=0)
    whole = client.chat.completions.create(**asked)
    assert (whole.usage and whole.usage.completion_tokens == 12) or whole.choices[0].message.content
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == (
        whole.choices[0].finish_reason
    )


def test_a_seed_makes_the_reply_again(client: openai.OpenAI) -> None:
    asked = asking("Hello", model="tiny-chat", temperature=1.0, seed=5)
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content


def test_pictures_are_seen_under_the_budget_of_their_detail(client: openai.OpenAI) -> None:
    tokens = {}
    for detail in ("low", "auto", "high"):
        picture = {"type": "image_url", "image_url": {"url": png(200, 300), "detail": detail}}
        reply = client.chat.completions.create(**asking(LOOK, picture, model="tiny-vl"))
        assert reply.usage and reply.usage.prompt_tokens_details
        tokens[detail] = reply.usage.prompt_tokens_details.model_dump()["image_tokens"]
    assert 0 < tokens["low"] <= 64 and tokens["auto"] <= 256
    assert tokens["low"] <= tokens["auto"] <= tokens["high"]


def test_a_spoken_question_is_answered_in_sound(client: openai.OpenAI) -> None:
    asked = asking(heard(), model="tiny-audio", modalities=["text", "audio"], max_tokens=40)
    reply = client.chat.completions.create(**asked, audio={"format": "wav", "voice": "alloy"})
    sound = reply.choices[0].message.audio
    assert sound is not None and reply.choices[0].message.content is None
    recording = Audio.open(base64.b64decode(sound.data))
    assert recording.rate == wire.RATE and len(recording.samples) > 0
    # The client sends the turn back by its id alone, as OpenAI's are.
    later = [
        *asked["messages"],
        {"role": "assistant", "audio": {"id": sound.id}},
        {"role": "user", "content": "And?"},
    ]
    again = client.chat.completions.create(**{**asked, "messages": later, "modalities": ["text"]})
    assert again.usage and reply.usage
    assert again.usage.prompt_tokens > reply.usage.prompt_tokens
    later[1]["audio"] = {"id": "nobody"}
    with pytest.raises(openai.BadRequestError, match="remembered"):
        client.chat.completions.create(**{**asked, "messages": later, "modalities": ["text"]})


def test_a_spoken_reply_streamed_is_the_whole_one(client: openai.OpenAI) -> None:
    asked = asking(heard(), model="tiny-audio", modalities=["text", "audio"], max_tokens=40, seed=1)
    whole = client.chat.completions.create(**asked, audio={"format": "pcm16", "voice": "x"})
    assert whole.choices[0].message.audio
    stream = client.chat.completions.create(
        **asked, audio={"format": "pcm16", "voice": "x"}, stream=True
    )
    deltas = [c.choices[0].delta.model_dump().get("audio") or {} for c in stream if c.choices]
    sound = b"".join(base64.b64decode(d["data"]) for d in deltas if d.get("data"))
    assert sound == base64.b64decode(whole.choices[0].message.audio.data)
    said = "".join(d.get("transcript") or "" for d in deltas)
    assert said == whole.choices[0].message.audio.transcript


@pytest.mark.parametrize(
    ("stop", "text"),
    [("four", "one two three "), (["zzz", "thr", "two"], "one "), ("five six", None), ("one", "")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_reply_before_itself(
    client: openai.OpenAI, stop: Any, text: str | None, stream: bool
) -> None:
    said = "one two three four five"
    reply = client.chat.completions.create(**asking(said, stop=stop, stream=stream))
    if stream:
        found = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    else:
        found = reply.choices[0].message.content
    assert found == (said if text is None else text)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    (asking("x", model="nobody"), 404, "tiny-vl, tiny-audio, tiny-chat, echo would do"),
    (asking("x", model="tiny-colbert"), 400, "colbert model"),
    (asking("x", n=2), 400, "n is not supported"),
    (asking("x", tools=[{"type": "function"}]), 400, "tools is not supported"),
    (asking("x", response_format={"type": "json_object"}), 400, "response_format"),
    (asking("x", logprobs=True), 400, "logprobs"),
    (asking("x", presence_penalty=0.5), 400, "presence_penalty"),
    (asking("x", made_up=1), 400, "made_up is not supported"),
    (asking("x", temperature=-1), 400, "temperature"),
    (asking("x", max_tokens=0), 400, "max_tokens"),
    (asking("x", modalities=["text", "audio"]), 400, "does not speak"),
    (asking("x", audio={"format": "wav"}), 400, "without modalities"),
    (asking("x", model="tiny-audio", modalities=["audio"]), 400, "need `audio`"),
    (asking("x", model="tiny-audio", modalities=["audio"], audio={"format": "wav"}, stream=True),
     400, "pcm16"),
    ({"model": "echo", "messages": []}, 400, "messages"),
    ({"model": "echo"}, 400, "messages"),
    (asking({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}), 400, "data"),
    (asking({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}), 400, "[0]"),
    (asking({"type": "file", "file": {}}), 400, "type"),
    (asking(LOOK, {"type": "image_url", "image_url": png()}, model="tiny-chat"), 400, "reads text"),
    (asking(LOOK, {"type": "image_url", "image_url": png()}, model="tiny-audio"), 400, "see"),
    (asking("word " * 3_000, model="tiny-chat"), 413, "tokens long"),
    (asking("x" * 5_000_000), 413, "at most"),
    (asking(*[LOOK] * 65), 413, "at most 64"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "told"), REFUSED)
def test_what_cannot_be_done_is_refused_with_a_reason(
    http: httpx.Client, body: dict[str, Any], status: int, told: str, stream: bool
) -> None:
    answer = http.post("v1/chat/completions", json={"stream": stream, **body})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert told in error["message"] and set(error) == {"message", "type", "code", "param"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"null"])
def test_what_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post("v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_neutral_values_that_clients_send_unasked_are_taken(http: httpx.Client) -> None:
    body = asking(
        "x", n=1, presence_penalty=0, frequency_penalty=0.0, logprobs=False, logit_bias={},
        response_format={"type": "text"}, tools=[], tool_choice="auto", stop=None, user="me",
        top_logprobs=None, store=False, service_tier="auto", functions=None, seed=None,
    )  # fmt: skip
    assert http.post("v1/chat/completions", json=body).status_code == 200


# ---- work that stops ------------------------------------------------------------------------


class Slow:
    """An engine whose every token takes a moment; tells how many it made."""

    name = "slow"
    accepts = frozenset[type]()

    def __init__(self) -> None:
        self.made, self.closed, self.stop = 0, threading.Event(), threading.Event()

    def stream(self, messages: Any, sampling: Any) -> Iterator[Any]:
        from lfm2_mm.types import Done, TextDelta

        try:
            while not self.stop.wait(0.005):
                self.made += 1
                yield TextDelta("x")
            yield Done("stop")
        finally:
            self.closed.set()

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def slow(service: Service) -> Iterator[Slow]:
    """Echo's engine replaced by a slow one: the server around it is the real one."""
    from dataclasses import replace

    made, before = Slow(), service.models["echo"]
    made.advice = before.engine.advice  # type: ignore[attr-defined]
    service.models["echo"] = replace(before, engine=made)
    yield made
    made.stop.set()
    service.models["echo"] = before


@pytest.mark.parametrize("stream", [False, True])
def test_generation_stops_when_the_client_leaves(
    http: httpx.Client, service: Service, slow: Slow, stream: bool
) -> None:
    """A connection that is closed in the middle of the work, whether something came or not."""
    asked = HTTPConnection(str(http.base_url.host), http.base_url.port)
    body = json.dumps(asking("x", stream=stream, max_tokens=None))
    asked.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    wait_for(lambda: slow.made > 3)
    asked.close()
    assert slow.closed.wait(60)
    made = slow.made
    time.sleep(0.1)
    assert slow.made == made
    wait_for(lambda: service.models["echo"].lane.jobs == 0)


def test_more_than_may_wait_are_sent_away_with_a_time(
    http: httpx.Client, service: Service, slow: Slow
) -> None:
    lane = service.models["echo"].lane
    body = asking("x", max_tokens=None)
    came: list[int] = []

    def ask() -> None:
        answer = httpx.post(f"{http.base_url}v1/chat/completions", json=body, timeout=120)
        came.append(answer.status_code)

    crowd = [threading.Thread(target=ask) for _ in range(lane.waiting + 1)]
    for thread in crowd:
        thread.start()
    wait_for(lambda: lane.jobs > lane.waiting)
    answer = http.post("v1/chat/completions", json=body)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    slow.stop.set()
    for thread in crowd:
        thread.join()
    assert came == [200] * len(crowd)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- speech ---------------------------------------------------------------------------------


def test_transcriptions_in_every_form(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-audio", "file": ("talk.wav", wav())}
    text = client.audio.transcriptions.create(**asked).text
    assert client.audio.transcriptions.create(**asked, response_format="text").strip() == text
    long = client.audio.transcriptions.create(**asked, response_format="verbose_json")
    assert long.text == text and long.duration == pytest.approx(0.7, abs=0.01)
    events = list(client.audio.transcriptions.create(**asked, stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == text
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert "".join(deltas).strip() == text


@pytest.mark.parametrize(
    ("form", "data", "status"),
    [
        ({"model": "tiny-audio"}, b"", 400),
        ({"model": "tiny-audio"}, b"no sound", 400),
        ({"model": "echo"}, b"x", 400),
        ({"model": "nobody"}, b"x", 404),
        ({"model": "tiny-audio", "response_format": "srt"}, b"x", 400),
        ({"model": "tiny-audio", "language": "fr"}, b"x", 400),
        ({"model": "tiny-audio", "prompt": "names"}, b"x", 400),
        ({"model": "tiny-audio", "timestamp_granularities[]": "word"}, b"x", 400),
    ],
)
def test_transcriptions_that_cannot_be(
    http: httpx.Client, form: dict[str, str], data: bytes, status: int
) -> None:
    answer = http.post("v1/audio/transcriptions", data=form, files={"file": ("a.wav", data)})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["mp3", "opus", "flac", "wav", "pcm"])
def test_speech_is_a_file_of_its_kind(client: openai.OpenAI, kind: Any) -> None:
    asked: Any = {"model": "tiny-audio", "voice": "alloy", "input": "Good morning"}
    with client.audio.speech.with_streaming_response.create(
        **asked, response_format=kind, extra_body={"seed": SEED}
    ) as answer:
        data = b"".join(answer.iter_bytes())
    samples = wire.read_pcm(data) if kind == "pcm" else Audio.open(data).samples
    assert len(samples) > 1_000 and np.isfinite(samples).all()


def test_speech_comes_while_it_is_made(http: httpx.Client) -> None:
    body = {"model": "tiny-audio", "input": "Hi", "response_format": "pcm", "seed": SEED}
    with http.stream("POST", "v1/audio/speech", json=body) as answer:
        pieces = [len(piece) for piece in answer.iter_raw()]
        assert "content-length" not in answer.headers
    assert len(pieces) > 1
    whole = http.post("v1/audio/speech", json={**body, "stream_format": "sse"})
    events = [json.loads(line[6:]) for line in whole.text.splitlines() if line[:6] == "data: "]
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["output_tokens"] > 0


@pytest.mark.parametrize(
    "how", [{"input": ""}, {"input": "  "}, {"speed": 2}, {"response_format": "aac"}, {"x": 1}]
)
def test_speech_that_cannot_be(http: httpx.Client, how: dict[str, Any]) -> None:
    answer = http.post("v1/audio/speech", json={"model": "tiny-audio", "input": "x", **how})
    assert answer.status_code == 400, answer.text


# ---- limits ---------------------------------------------------------------------------------


def silence(minutes: float) -> bytes:
    """Of a few bytes a second, so that its length and not its size is what is too much."""
    import soundfile

    held = io.BytesIO()
    samples = np.zeros(int(minutes * 60 * 1_000), np.float32)
    soundfile.write(held, samples, 1_000, format="WAV", subtype="PCM_U8")
    return held.getvalue()


def test_pixels_and_seconds_beyond_the_limit_are_413(http: httpx.Client) -> None:
    held = io.BytesIO()
    Pil.new("1", (20_000, 20_000)).save(held, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    bomb = asking(LOOK, {"type": "image_url", "image_url": {"url": url}}, model="tiny-vl")
    data = base64.b64encode(silence(31)).decode()
    long = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    for body in (bomb, asking(long, model="tiny-audio")):
        answer = http.post("v1/chat/completions", json=body)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "too_large"
    form, files = {"model": "tiny-audio"}, {"file": ("long.wav", silence(61))}
    answer = http.post("v1/audio/transcriptions", data=form, files=files)
    assert answer.status_code == 413 and "60" in answer.json()["error"]["message"]
