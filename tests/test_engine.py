"""One suite over every engine, and what the native one promises: reuse and limits."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from apps import cli
from apps.lanes import Lane
from apps.service import Served, Service
from lfm2_mm.backbone import Backbone
from lfm2_mm.engine import Engine, open_engine
from lfm2_mm.engines.native import Native, advice_of
from lfm2_mm.errors import BadInput, CheckpointDamaged, ContextExceeded, UnknownCheckpoint
from lfm2_mm.exports.to_gguf import PIECES
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.types import Audio, Done, Image, Message, Progress, Sampling, Text, TextDelta, text_of
from tests import tiny, tiny_vision
from tests.served import serving
from tests.shades import Shades, picture

GREEDY = Sampling(temperature=0.0, max_tokens=12)
HELLO = [Message.system("Be kind."), Message.user("Hello, how are you? 你好 🙂")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.lfm2_folder(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Our own server over the same checkpoint."""
    model = Served("tiny", "chat", fresh(folder), Lane("tiny"))
    with serving(Service([model])) as address:
        yield f"{address}v1"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer splits text as the published ones do, and llama.cpp."""
    made = tiny.lfm2_folder(tmp_path_factory.mktemp("engine") / "family")
    return tiny.tokenizer_files(made, pattern=PIECES)


@pytest.fixture(scope="module")
def gguf(family: Path) -> Path:
    """The same checkpoint as a file of llama.cpp's."""
    for library in ("gguf", "xllamacpp"):
        pytest.importorskip(library, reason=f"gguf: {library} is not installed")
    from lfm2_mm.exports.source import open_source
    from lfm2_mm.exports.to_gguf import write

    write(open_source(family, "tiny"), family / "tiny.gguf", "f32", 0)
    return family / "tiny.gguf"


@pytest.fixture(params=["echo", "native", "remote", "gguf"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    names = {"echo": "echo", "native": folder}
    stands_in = {"remote": "address"}.get(request.param, request.param)
    name = names.get(request.param) or request.getfixturevalue(stands_in)
    opened = open_engine(name, dtype="fp32")
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


# -- llama.cpp ------------------------------------------------------------------------------------


def test_llama_answers_as_our_engine_does(family: Path, gguf: Path) -> None:
    ours, theirs = fresh(family), open_engine(gguf)
    asked = list(HELLO)
    for question in ("And then?", "What of <|im_end|> and <|im_start|>system?", "你好 12345"):
        ends = [list(engine.stream(asked, GREEDY)) for engine in (ours, theirs)]
        # Of half a character at the end llama.cpp says nothing.
        assert text_of(ends[0]).rstrip("\ufffd") == text_of(ends[1])
        done = [ended(events) for events in ends]
        assert done[0].reason == done[1].reason
        assert done[0].usage.prompt_tokens == done[1].usage.prompt_tokens
        asked += [Message.assistant(text_of(ends[0])), Message.user(question)]
    theirs.close()


def test_llama_goes_on_from_what_it_has_read(gguf: Path) -> None:
    engine = open_engine(gguf)
    one = Sampling(temperature=0.0, max_tokens=1)
    answer = text_of(engine.stream(HELLO, one))
    longer = [*HELLO, Message.assistant(answer), Message.user("And then?")]
    again = list(engine.stream(longer, GREEDY))
    engine.close()
    engine = open_engine(gguf)
    anew = list(engine.stream(longer, GREEDY))
    engine.close()
    assert text_of(again) == text_of(anew)
    assert ended(again).usage.reused_tokens > ended(anew).usage.reused_tokens == 0


def test_a_file_is_the_model_of_a_chat(gguf: Path, capsys, tmp_path: Path) -> None:
    how = ["--max-tokens", "2", "--temperature", "0", "--json"]
    answers = []
    for words in (["--engine", "gguf", str(gguf), "Hello"], ["Hello", "--model", str(gguf)]):
        assert cli.main(["chat", *words, *how]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["usage"]["completion_tokens"] == 2
    assert cli.main(["chat", "--engine", "gguf", "Hello", *how]) == 2
    assert "needs a file" in capsys.readouterr().err
    assert cli.main(["chat", "Hello", "there", "--model", "echo", *how]) == 2
    assert "quotes" in capsys.readouterr().err


def test_ctrl_c_stays_python_s_wherever_llama_was_opened(gguf: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        engine = threads.submit(open_engine, gguf).result()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert text_of(engine.stream(HELLO, GREEDY))
    engine.close()


def test_llama_keeps_to_seed_and_penalty(family: Path, gguf: Path) -> None:
    engine = open_engine(gguf)
    sampling = Sampling(temperature=1.5, max_tokens=8, seed=5)
    assert text_of(engine.stream(HELLO, sampling)) == text_of(engine.stream(HELLO, sampling))
    penalised = Sampling(temperature=0.0, repetition_penalty=1.5, max_tokens=8)
    assert text_of(engine.stream(HELLO, penalised)) == text_of(
        fresh(family).stream(HELLO, penalised)
    ).rstrip("\ufffd")
    engine.close()


def test_llama_tells_what_it_cannot_open(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no file; `lfm2-mm export"):
        open_engine(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(BadInput, match="is no GGUF file"):
        open_engine(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:100_000])
    with pytest.raises(CheckpointDamaged, match=r"cut\.gguf"):
        open_engine(tmp_path / "cut.gguf")


def test_llama_refuses_a_conversation_beyond_the_context(gguf: Path) -> None:
    engine = open_engine(gguf)
    with pytest.raises(ContextExceeded, match=r"\d+ tokens long.*at most 1023"):
        engine.stream([Message.user("word " * 2000)], GREEDY)
    engine.close()


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
    with pytest.raises(BadInput, match="native, echo, remote, gguf"):
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


def test_streams_that_take_turns_do_not_disturb_each_other(folder: Path) -> None:
    engine = fresh(folder)
    others = [Message.system("Be kind."), Message.user("Bye?")]
    wanted = [text_of(fresh(folder).stream(said, GREEDY)) for said in (HELLO, others)]
    streams = [engine.stream(said, GREEDY) for said in (HELLO, others)]
    heard = zip(*zip_longest(*streams, fillvalue=TextDelta("")), strict=True)
    assert [text_of(events) for events in heard] == wanted


def test_streams_in_threads_do_not_disturb_each_other(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = fresh(folder)
    asked = [[Message.system("Be kind."), Message.user(f"{n}?")] for n in range(6)]
    wanted = [text_of(fresh(folder).stream(said, GREEDY)) for said in asked]
    with ThreadPoolExecutor(6) as threads:
        heard = list(threads.map(lambda said: text_of(engine.stream(said, GREEDY)), asked))
    assert heard == wanted


# -- parts that an encoder takes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.vl_folder(tmp_path_factory.mktemp("engine") / "sighted")


def seeing(folder: Path, context: int = 1024) -> Native:
    tokenizer = ChatTokenizer(folder)
    backbone = Backbone.open(folder, dtype="fp32")
    shades = Shades(tokenizer.id_of("<image>"), backbone.config.hidden_size)
    return Native("tiny", backbone, tokenizer, context, Sampling(), shades)


def computed(engine: Native) -> int:
    return engine._encoder.computed  # type: ignore[union-attr]


TWO = Message.user(picture(3, 1, 4), "beside", picture(1, 5), "What?")


def ended(events: list) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


def test_what_a_slot_holds_reaches_the_answer(sighted: Path) -> None:
    engine = seeing(sighted)
    assert engine.accepts == {Text, Image}
    shown = [picture(*rows) for rows in ([1, 2], [2, 1], [1, 3], [7, 7])]
    answers = {text_of(engine.stream([Message.user(one, "What?")], GREEDY)) for one in shown}
    assert len(answers) >= 3


@pytest.mark.parametrize("portion", [1, 2, 3, 5, 512])
def test_portions_of_a_prompt_may_end_inside_a_slot(
    sighted: Path, portion: int, monkeypatch
) -> None:
    whole = list(seeing(sighted).stream([TWO], GREEDY))
    monkeypatch.setattr("lfm2_mm.engines.native.PREFILL", portion)
    parts = list(seeing(sighted).stream([TWO], GREEDY))
    assert text_of(parts) == text_of(whole)
    assert ended(parts).usage == ended(whole).usage
    assert ended(whole).usage.image_tokens == 5


def test_a_follow_up_reads_only_what_is_new_and_encodes_nothing(sighted: Path) -> None:
    engine = seeing(sighted)
    answer = text_of(engine.stream([TWO], GREEDY))
    assert computed(engine) == 5
    longer = [TWO, Message.assistant(answer), Message.user("And then?")]
    again, anew = (list(e.stream(longer, GREEDY)) for e in (engine, seeing(sighted)))
    assert text_of(again) == text_of(anew)
    assert computed(engine) == 5
    assert ended(again).usage.reused_tokens > ended(anew).usage.reused_tokens == 0
    assert ended(again).timings.vision_s == 0.0


def test_another_picture_of_the_same_size_is_not_taken_for_the_first(sighted: Path) -> None:
    engine = seeing(sighted)
    list(engine.stream([TWO], GREEDY))
    other = [Message.user(picture(3, 1, 4), "beside", picture(1, 6), "What?")]
    events = list(engine.stream(other, GREEDY))
    assert text_of(events) == text_of(seeing(sighted).stream(other, GREEDY))
    assert computed(engine) == 5 + 2  # the first picture is in the state


def test_a_stop_between_portions_stops_the_work(sighted: Path, monkeypatch) -> None:
    monkeypatch.setattr("lfm2_mm.engines.native.PREFILL", 4)
    wanted = list(seeing(sighted).stream([TWO], GREEDY))
    steps = [e for e in wanted if isinstance(e, Progress)]
    assert [(s.what, s.done) for s in steps[:5]] == [("vision", n) for n in range(5)]
    assert {s.what for s in steps[5:]} == {"prompt"} and steps[4].total == 5
    for stop in range(len(steps)):
        engine = seeing(sighted)
        stream = engine.stream([TWO], GREEDY)
        for _ in range(stop + 1):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert computed(engine) == min(stop, 5)
        assert text_of(engine.stream([TWO], GREEDY)) == text_of(wanted)


def test_a_context_that_is_too_short_is_told_before_anything_is_encoded(sighted: Path) -> None:
    engine = seeing(sighted, context=40)
    with pytest.raises(ContextExceeded, match=r"tokens long, 60 of them for pictures.* at most 39"):
        engine.stream([Message.user(picture(*range(60)), "What?")], GREEDY)
    assert computed(engine) == 0
