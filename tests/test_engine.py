"""One suite over every engine, and what the native one promises: reuse and limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm2_mm.engine import Engine, open_engine
from lfm2_mm.engines.native import advice_of, shared_prefix
from lfm2_mm.errors import BadInput, ContextExceeded, UnknownCheckpoint
from lfm2_mm.types import Audio, Done, Message, Sampling, Text, TextDelta, text_of
from tests import tiny

GREEDY = Sampling(temperature=0.0, max_tokens=12)
HELLO = [Message.system("Be kind."), Message.user("Hello, how are you? 你好 🙂")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.lfm2_folder(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(params=["echo", "native"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    opened = open_engine("echo" if request.param == "echo" else folder, dtype="fp32")
    yield opened
    opened.close()


def fresh(folder: Path, dtype: str = "fp32") -> Engine:
    return open_engine(folder, dtype=dtype)


# -- the contract -------------------------------------------------------------------------------


def test_stream_is_text_and_then_one_done(engine: Engine) -> None:
    *deltas, done = engine.stream(HELLO, GREEDY)
    assert all(isinstance(d, TextDelta) and d.text for d in deltas)
    assert isinstance(done, Done)
    assert done.reason in ("stop", "length")
    assert 1 <= done.usage.completion_tokens <= 12
    assert done.usage.prompt_tokens > 0


def test_accepts_says_text_and_text_is_taken(engine: Engine) -> None:
    assert Text in engine.accepts
    assert list(engine.stream([Message.user("hi")], Sampling(temperature=0.0, max_tokens=1)))


def test_a_stream_that_is_closed_leaves_the_engine_usable(engine: Engine) -> None:
    whole = list(engine.stream(HELLO, GREEDY))
    stopped = engine.stream(HELLO, GREEDY)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert text_of(engine.stream(HELLO, GREEDY)) == text_of(whole)


def test_an_empty_conversation_is_refused(engine: Engine) -> None:
    with pytest.raises(BadInput, match="empty"):
        list(engine.stream([], GREEDY))


def test_the_reply_ends_at_max_tokens(engine: Engine) -> None:
    done = list(engine.stream(HELLO, Sampling(temperature=0.0, max_tokens=2)))[-1]
    assert isinstance(done, Done)
    assert (done.reason, done.usage.completion_tokens) == ("length", 2)


# -- the native engine --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.lfm2_folder, tiny.moe_folder])
def test_a_second_turn_equals_a_fresh_run_and_reuses_the_first(make, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    engine = fresh(folder)
    answer = text_of(engine.stream(HELLO, GREEDY))
    longer = [*HELLO, Message.assistant(answer), Message.user("And then?")]
    again = list(engine.stream(longer, GREEDY))
    anew = list(fresh(folder).stream(longer, GREEDY))
    assert text_of(again) == text_of(anew)
    assert isinstance(again[-1], Done) and isinstance(anew[-1], Done)
    assert again[-1].usage.reused_tokens > 20
    assert anew[-1].usage.reused_tokens == 0


def test_going_back_to_an_earlier_question_equals_a_fresh_run(folder: Path) -> None:
    engine = fresh(folder)
    list(engine.stream(HELLO, GREEDY))
    other = [HELLO[0], Message.user("Something else entirely")]
    assert text_of(engine.stream(other, GREEDY)) == text_of(fresh(folder).stream(other, GREEDY))


def test_the_same_prompt_again_gives_the_same_answer(folder: Path) -> None:
    engine = fresh(folder)
    assert text_of(engine.stream(HELLO, GREEDY)) == text_of(engine.stream(HELLO, GREEDY))


def test_greedy_equals_transformers_generate(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    turns = [{"role": m.role, "content": m.text} for m in HELLO]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    want = tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text_of(fresh(folder).stream(HELLO, GREEDY)) == want


def test_a_seed_repeats_a_sampled_reply(folder: Path) -> None:
    sampling = Sampling(temperature=1.5, max_tokens=10, seed=3)
    first, second = (text_of(fresh(folder).stream(HELLO, sampling)) for _ in range(2))
    assert first == second


def test_a_conversation_beyond_the_context_tells_both_lengths(tmp_path: Path) -> None:
    engine = fresh(tiny.lfm2_folder(tmp_path / "m", max_position_embeddings=48))
    with pytest.raises(ContextExceeded, match=r"\d+ tokens long.*at most 47"):
        list(engine.stream([Message.user("word " * 100)], GREEDY))


def test_a_reply_stops_where_the_context_ends(tmp_path: Path) -> None:
    engine = fresh(tiny.lfm2_folder(tmp_path / "m", max_position_embeddings=32))
    done = list(engine.stream([Message.user("hi")], Sampling(temperature=0.0, max_tokens=500)))[-1]
    assert isinstance(done, Done)
    assert done.usage.prompt_tokens + done.usage.completion_tokens <= 32


def test_long_prompts_are_read_in_portions(folder: Path, monkeypatch) -> None:
    whole = text_of(fresh(folder).stream(HELLO, GREEDY))
    monkeypatch.setattr("lfm2_mm.engines.native.PREFILL", 7)
    assert text_of(fresh(folder).stream(HELLO, GREEDY)) == whole


def test_sound_is_refused_by_a_text_checkpoint(folder: Path) -> None:
    import numpy as np

    message = Message.user("listen", Audio(np.zeros(10, np.float32), 16_000))
    with pytest.raises(BadInput, match="Audio"):
        list(fresh(folder).stream([message], GREEDY))


def test_unknown_names_and_engines_are_named() -> None:
    with pytest.raises(UnknownCheckpoint, match="lfm2-350n"):
        open_engine("lfm2-350n", offline=True)
    with pytest.raises(BadInput, match="native, echo"):
        open_engine("echo", engine="gpu")


def test_a_colbert_checkpoint_does_not_chat() -> None:
    with pytest.raises(BadInput, match="colbert"):
        open_engine("nano-colbert", offline=True)


def test_advice_comes_from_the_table_then_the_file_then_the_default(tmp_path: Path) -> None:
    advice = Sampling(temperature=0.1)
    assert advice_of(tmp_path, advice) is advice
    assert advice_of(tmp_path, None) == Sampling()
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 5}')
    assert advice_of(tmp_path, None) == Sampling(temperature=0.6, top_k=5)


@pytest.mark.parametrize(
    ("old", "new", "shared"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 5], [1, 6], 1)],
)
def test_shared_prefix(old: list[int], new: list[int], shared: int) -> None:
    assert shared_prefix(old, new) == shared
