"""Messages to ids as transformers' template does it, and ids to text without half characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.prompt import ChatTokenizer, TextStream
from lfm2_mm.types import Message
from tests import tiny

TEXTS = ["plain words", "naïve café", "你好，世界", "🙂👩‍👩‍👧‍👦", "a\n\n  b\t", "", "½ ﬁ \u0301"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.lfm2_folder(tmp_path_factory.mktemp("prompt") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


def test_ids_are_those_of_the_checkpoints_template(folder: Path, tokenizer: ChatTokenizer) -> None:
    from transformers import AutoTokenizer

    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "你好")]
    want = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": r, "content": t} for r, t in turns], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokenizer.render([Message.of(r, t) for r, t in turns]) == want  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_joins_to_the_whole(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer._tokenizer(text, add_special_tokens=False).input_ids
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_character_do_come_out(tokenizer: ChatTokenizer) -> None:
    half = tokenizer._tokenizer("🙂", add_special_tokens=False).input_ids[:1]
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in half * 30] + [stream.flush()]
    assert "\ufffd" in "".join(pieces)
    assert pieces.count("") < 30


def test_stops_hold_the_end_of_turn(tokenizer: ChatTokenizer) -> None:
    assert 7 in tokenizer.stops


def test_a_folder_without_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lfm2"}')
    with pytest.raises(CheckpointDamaged, match="tokenizer"):
        ChatTokenizer(tmp_path)


def test_a_checkpoint_without_template_is_told(tmp_path: Path) -> None:
    tiny.lfm2_folder(tmp_path)
    for path in tmp_path.glob("chat_template*"):
        path.unlink()
    with pytest.raises(BadInput, match="chat template"):
        ChatTokenizer(tmp_path).render([Message.user("hi")])
