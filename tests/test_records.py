"""A conversation from disk goes on as if it had never been away; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audio import speech as opened
from audio.conversation import Conversation, Manner
from audio.speech import Speech
from lfm2_mm.errors import BadInput
from lfm2_mm.types import Audio, Sampling
from tests import tiny_audio
from tests.plain_codec import PlainCodec

GREEDY = Manner(sound=Sampling(temperature=0.0), steps=20)
CLIP = Audio(tiny_audio.recording(0.3, 16_000, 1), 16_000)


def speech_of(folder: Path, **settings: object) -> Speech:
    tiny_audio.speech_folder(folder, **{**tiny_audio.SMALL, **settings})
    speech = opened.open(folder, device="cpu", dtype="fp32")
    speech.codec = PlainCodec()  # type: ignore[assignment]
    return speech


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return speech_of(tmp_path_factory.mktemp("speech"))


def said(conversation: Conversation) -> list[object]:
    return [
        item if isinstance(item, int | tuple) else (item.mel.sum().item(), item.offset)
        for item in conversation.history.items
    ]


def held(speech: Speech, *turns: str | Audio, events: int | None = None) -> Conversation:
    """A conversation of these turns, the last reply stopped after so many events."""
    conversation = speech.converse(manner=GREEDY)
    for number, turn in enumerate(turns, 1):
        for _ in islice(conversation.reply(turn), events if number == len(turns) else None):
            pass
    return conversation


@pytest.mark.parametrize("turns", [(), ("Why?",), (CLIP, "And?"), ("Why?", CLIP, CLIP)], ids=len)
@pytest.mark.parametrize("events", [None, 3], ids=["ended", "stopped"])
def test_it_goes_on(
    speech: Speech, tmp_path: Path, turns: tuple[str | Audio, ...], events: int | None
) -> None:
    conversation = held(speech, *turns, events=events)
    path = conversation.save(tmp_path / "talk.history")
    again = speech.resume(path, manner=GREEDY)
    assert said(again) == said(conversation)
    assert again.turns == conversation.turns and again.number == conversation.number
    for each in (conversation, again):
        assert each.reply("How do I stop?").text
    assert said(again) == said(conversation)


def test_a_cut_answer_is_kept_as_it_was_heard(speech: Speech, tmp_path: Path) -> None:
    conversation = held(speech, "How do I stop?")
    conversation.played(0)
    again = speech.resume(conversation.save(tmp_path / "h"), manner=GREEDY)
    assert again.turns.answer is None and said(again) == said(conversation)


def test_saving_replaces_the_old_file_whole(speech: Speech, tmp_path: Path) -> None:
    path = tmp_path / "h"
    held(speech, "Why?").save(path)
    held(speech, "Why?", CLIP).save(path)
    assert len(speech.resume(path).turns.starts) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["h"]


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(
    speech: Speech, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        held(speech, "Why?").save(tmp_path / "no" / "h")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_another_kind_of_file_is_refused(speech: Speech, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "h"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is no conversation"):
        speech.resume(path)
    with pytest.raises(BadInput, match="is no file"):
        speech.resume(tmp_path / "missing")


def test_another_checkpoint_s_conversation_is_refused(speech: Speech, tmp_path: Path) -> None:
    other = speech_of(tmp_path / "other", codebooks=2)
    path = held(speech, "Why?").save(tmp_path / "h")
    with pytest.raises(BadInput, match="was held with") as caught:
        other.resume(path)
    assert speech.name in str(caught.value)


Damage = Callable[[dict[str, Tensor], dict[str, str]], object]
DAMAGES: dict[str, Damage] = {
    "flags": lambda tensors, _: tensors["flags"].__setitem__(3, 9),
    "swapped flags": lambda tensors, _: tensors["flags"].__setitem__(3, 3),
    "token out of the vocabulary": lambda tensors, _: tensors["text"].__setitem__(3, 1 << 20),
    "negative code": lambda tensors, _: tensors["spoken"].__setitem__((0, 0), -1),
    "too few tokens": lambda tensors, _: tensors.update(text=tensors["text"][:-1].clone()),
    "NaN": lambda tensors, _: tensors["mel"].__setitem__((0, 0), torch.nan),
    "frames of another length": lambda tensors, _: tensors["mel_frames"].__setitem__(0, 3),
    "no turns": lambda _, about: about.pop("turns"),
    "turns beyond the end": lambda _, about: about.update(
        turns=json.dumps({"opening": 5, "starts": [10_000], "answer": None})
    ),
    "turns of another shape": lambda _, about: about.update(turns="[1, 2]"),
    "a missing part": lambda tensors, _: tensors.pop("flags"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(speech: Speech, tmp_path: Path, damage: str) -> None:
    path = held(speech, CLIP, "Why?").save(tmp_path / "h")
    with safe_open(path, framework="pt") as file:
        about = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    DAMAGES[damage](tensors, about)
    save_file(tensors, path, metadata=about)
    with pytest.raises(BadInput, match="damaged"):
        speech.resume(path)
