"""The speech checkpoint in the package: its files, people it never heard, its own speech."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import audio
from apps import cli
from apps.lanes import Lane
from apps.service import Served, Service
from audio.speech import Speech
from lfm2_mm.checkpoint import locate
from lfm2_mm.types import Audio
from lfm2_mm.weights import count_parameters
from tests import served

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_audio_clips import RATE, barista, digits, strange_held
from nano_audio_heldout import listener, plain, slots_right
from nano_audio_judge import errors
from nano_audio_language import SORRY

FOLDER = locate("nano-audio", fetch=False)
ORDER = "can I get a large latte with soy milk"


@pytest.fixture(scope="module")
def speech() -> Speech:
    return audio.open("nano-audio", dtype="fp32", device="cpu", offline=True)


def test_it_is_small_and_has_a_card() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 18_000_000
    assert count_parameters(FOLDER) < 7_000_000  # without the voice
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in (
        "cc-by-sa-4.0",
        "CC BY-SA 4.0",
        "Free Spoken Digit",
        "Speech Commands",
        "Picovoice",
        "flite",
        "Limits",
    ):
        assert word in card


def test_the_weights_are_those_of_the_card() -> None:
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_it_turns_words_and_frames_as_its_configuration_says() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert (config["interleaved_n_text"], config["interleaved_n_audio"]) == (1, 2)
    assert config["codebooks"] == 4 and config["text_pad"] == "<|text_pad|>"


def test_by_http_words_it_lacks_are_named_or_refused(speech: Speech) -> None:
    service = Service([Served("nano-audio", "speech", speech, Lane("nano-audio"))], {})
    with served.serving(service) as address, httpx.Client(base_url=address) as http:
        asked = {"model": "nano-audio", "response_format": "pcm"}
        said = http.post("v1/audio/speech", json={**asked, "input": "one latte for Zoë and Max."})
        assert said.is_success and len(said.content) > 48_000
        assert said.headers["x-spelled"] == "Zo%C3%AB, Max"
        known = http.post("v1/audio/speech", json={**asked, "input": "one latte.", "strict": True})
        assert known.is_success and "x-spelled" not in known.headers
        refused = http.post("v1/audio/speech", json={**asked, "input": "Max.", "strict": True})
        assert refused.status_code == 400 and "Max" in refused.json()["error"]["message"]


def test_it_says_what_it_reads(speech: Speech) -> None:
    """By an independent recogniser that knows the counter's replies: three sentences of four."""
    pytest.importorskip("pocketsphinx")
    judge, right = listener(), 0
    for text in (
        "one large latte with soy milk, coming right up.",
        "number three seven, thank you.",
        SORRY,
        "hello, what can I get you?",
    ):
        spoken = speech.speak(text).audio
        assert 0.05 < float(np.abs(spoken.samples).max()) <= 1.0
        assert 0.15 < spoken.seconds / len(text.split()) < 0.7
        right += errors(plain(text), judge.hear(spoken.samples, spoken.rate)) == 0
    assert right >= 3


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_the_readme_s_order_is_understood(dtype: str) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    order = re.search(r'lfm2-mm speak "I want a (.*)\." -o order.wav', readme)
    assert order is not None
    speech = audio.open("nano-audio", dtype=dtype, device="cpu", offline=True)
    reply = speech.converse().reply(speech.speak(f"I want a {order[1]}.").audio)
    assert reply.text == f"one {order[1]}, coming right up."


def test_every_dtype_says_the_same(speech: Speech) -> None:
    other = audio.open("nano-audio", dtype="int8", device="cpu", offline=True)
    lengths = [s.speak("thank you.").audio.seconds for s in (speech, other)]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.25)


def test_it_understands_people_it_never_heard(speech: Speech, data: Path) -> None:
    """A floor well under the card's figures: a damaged file falls below it."""
    marks: list[bool] = []
    for clip in barista(data)[1][::7]:
        reply = speech.converse().reply(Audio(clip.samples, RATE))
        marks += slots_right(reply.text, clip.slots or {})
    assert len(marks) > 30 and sum(marks) / len(marks) > 0.85


def test_it_understands_digits_of_a_speaker_it_never_heard(speech: Speech, data: Path) -> None:
    clips = digits(data)[1][::20]
    said = [speech.converse().reply(Audio(clip.samples, RATE)).text for clip in clips]
    right = [text == clip.reply for text, clip in zip(said, clips, strict=True)]
    assert len(right) > 20 and sum(right) / len(right) > 0.75, said


def test_it_is_sorry_about_what_it_does_not_know(speech: Speech, data: Path) -> None:
    reading, noise = strange_held(data)
    said = [
        speech.converse().reply(Audio(clip.samples, RATE)).text
        for clip in (*reading[:6], *noise[:6])
    ]
    assert said.count(SORRY) > 8, said


def test_a_second_turn_is_answered_as_the_first(speech: Speech, data: Path) -> None:
    clips = barista(data)[1][:6]
    conversation, same = speech.converse(), 0
    for clip in clips[:3]:
        question = Audio(clip.samples, RATE)
        alone = speech.converse().reply(question).text
        same += conversation.reply(question).text == alone
    assert same >= 2


def test_talk_transcribe_and_speak_take_it_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question, answer = str(tmp_path / "question.wav"), str(tmp_path / "answer.wav")

    def ask(*argv: str) -> dict[str, object]:
        assert cli.main([*argv, "--json", "--offline", "--device", "cpu"]) == 0
        told: dict[str, object] = json.loads(capsys.readouterr().out)
        return told

    assert ask("speak", ORDER, "-o", question)["spelled"] == []
    assert ask("speak", "zork", "-o", question)["spelled"] == ["zork"]
    assert cli.main(["speak", "zork", "--strict", "-o", question, "--offline"]) == 1
    assert "zork" in capsys.readouterr().err
    ask("speak", ORDER, "-o", question)
    assert ask("transcribe", question)["text"]
    told = ask("talk", question, "-o", answer)
    assert told["text"] and Audio.open(answer).seconds > 0.5
