"""The command line: the contract of names, keys, exit codes and one-line errors."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps import cli
from apps.verbs.chat import FIELDS, sampling_of
from lfm2_mm import shapes
from lfm2_mm.types import Sampling
from tests import tiny
from tests.conftest import Asked

VERBS = (
    "models", "doctor", "fetch", "chat", "see", "transcribe", "speak", "talk", "index", "search",
    "delete", "info", "check", "repair", "compact", "encode", "attach", "evaluate", "bench", "demo",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.colbert_folder(tmp_path_factory.mktemp("model") / "tiny-colbert"))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.lfm2_folder(tmp_path_factory.mktemp("model") / "tiny-chat"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "refunds.txt").write_text("A refund takes five days. Ask the desk for a form.\n")
    (folder / "bread.md").write_text("# Bread\n\nMix flour and water, then bake it for an hour.\n")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def made(files: Path, model: str, tmp_path: Path) -> str:
    """An index of `files`."""
    index = str(tmp_path / "my.index")
    assert cli.main(["index", str(files), "--index", index, "--model", model, "--json"]) == 0
    return index


def start(*argv: str, **more: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "apps.cli", *argv], text=True, **{**pipes, **more}
    )


# ---- start-up and usage ---------------------------------------------------------------------


def test_torch_stays_out_of_what_must_start_at_once(made: str) -> None:
    code = (
        "import sys; from apps.cli import main\n"
        f"for argv in (['--help'], ['models'], ['info', '--index', {made!r}],\n"
        f"             ['search', 'refund', '--index', {made!r}, '--mode', 'lexical']):\n"
        "    assert main(argv) == 0\n"
        "heavy = {'torch', 'transformers', 'gradio', 'faiss', 'pylate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "refunds.txt" in done.stdout


def test_shapes_of_the_flag_are_those_there_are() -> None:
    assert set(cli.SHAPES) == set(shapes.SHAPES)


def test_every_verb_has_help_and_the_common_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert cli.main([verb, "--help"]) == 0
        shown = capsys.readouterr().out
        for flag in ("--json", "--device", "--dtype", "--offline", "--debug"):
            assert flag in shown, (verb, flag)


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        ("", "VERB"),
        ("serch x", "choose from"),
        ("search x --index i -k 0", "from 1"),
        ("search x --index i -k -5", "from 1"),
        ("search x --index i -k ten", "from 1"),
        ("search x --index i --mode fast", "'lexical'"),
        ("search x --index i --filter pdf", "key=value"),
        ("search x --index i --fliter a=b", "unrecognized"),
        ("search x", "--index"),
        ("index x --index i --codec int3", "'4bit'"),
        ("check --index i --keep --target .9", "--recall"),
        ("check --index i --recall --keep", "--target"),
        ("check --index i --recall --target 2", "to 1"),
        ("index --index i", "PATH"),
        ("index x --index=", "nothing is in it"),
        ("search x --index i --model=", "nothing is in it"),
        ("search caf\udce9 --index i", "not UTF-8"),
        ("serve --host=", "nothing is in it"),
        ("serve --index=", "nothing is in it"),
        ("serve --cors https://example.org/", "no slash"),
        ("talk a.wav -o b.wav --history=", "nothing is in it"),
        ("chat hi --max-tokens 0", "from 1"),
        ("chat hi --temperature -1", "from 0"),
        ("chat hi --temperature nan", "from 0"),
        ("chat hi --min-p 2", "to 1"),
        ("chat hi --dtype int3", "'int8'"),
        ("chat hi --max-tokens 99999999", "to 1,048,576"),
        ("demo --port 65536", "to 65,535"),
        ("bench speed", "'chat'"),
        ("bench chat --shape LFM9", "LFM2-350M"),
        ("bench chat --shape LFM2-VL-450M", "LFM2-1.2B"),
        ("bench vision --shape LFM2-350M", "LFM2.5-VL-450M"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_valid(
    line: str, valid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and valid in shown.err.splitlines()[-1]


# ---- the JSON of each verb ------------------------------------------------------------------


def test_models(asked: Asked) -> None:
    rows = {row["name"]: row for row in asked("models")}
    assert rows["nano-colbert"]["source"] == "bundled" and rows["LFM2-350M"]["source"] == "hub"
    for row in rows.values():
        assert set(row) >= {"name", "kind", "source", "parameters", "licence"}
        assert row["kind"] in {"chat", "vision", "speech", "colbert"}


def test_doctor(asked: Asked) -> None:
    checks = {check["name"]: check for check in asked("doctor")["checks"]}
    assert all(set(check) == {"name", "ok", "detail"} for check in checks.values())
    assert (
        checks["python"]["ok"] and checks["sqlite"]["ok"] and "FTS5" in checks["sqlite"]["detail"]
    )
    assert "threads" in checks["device"]["detail"]


def test_doctor_exits_1_where_something_required_is_broken(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps import doctor

    monkeypatch.setattr(doctor, "_device", lambda *_: 1 / 0)
    checks = {check["name"]: check for check in asked("doctor", code=1)["checks"]}
    assert not checks["device"]["ok"] and checks["sqlite"]["ok"]


def test_index_search_delete_info_check(
    files: Path, model: str, tmp_path: Path, asked: Asked
) -> None:
    index = str(tmp_path / "one.index")
    made = asked("index", str(files), "--index", index, "--model", model, "--meta", "team=desk")
    assert (made["documents"], made["added"], made["updated"], made["removed"]) == (2, 2, 0, 0)
    assert {"index", "chunks", "tokens", "seconds", "bytes"} <= set(made)
    (skipped,) = made["skipped"]
    assert skipped["path"].endswith("empty.txt") and skipped["why"]

    for mode in ("hybrid", "colbert", "lexical"):
        found = asked("search", "refund form", "--index", index, "--mode", mode, "-k", "1")
        (hit,) = found["hits"]
        assert found["query"] == "refund form" and found["seconds"] >= 0
        keys = {"rank", "score", "id", "document", "source", "start", "end", "text", "matches"}
        assert set(hit) >= keys
        text = Path(hit["source"]).read_text()
        assert text[hit["start"] : hit["end"]] == hit["text"]
    assert Path(hit["source"]).name == "refunds.txt"
    assert any(hit["text"][m["start"] : m["end"]] == m["word"] for m in hit["matches"])

    narrow = ("search", "refund", "--index", index, "--mode", "lexical", "--filter")
    assert not asked(*narrow, "source=*.md")["hits"]
    assert asked(*narrow, "team=desk")["hits"] and not asked(*narrow, "team=sales")["hits"]

    held = asked("info", "--index", index)
    assert held["documents"] == 2 and set(held) >= {"chunks", "tokens", "bytes", "model", "version"}
    assert (held["codec"], held["pool"]) == ("int8", 1)
    assert asked("check", "--index", index) == {"ok": True, "damaged": []}
    left = asked("delete", "--index", index, "--source", "*.md")
    assert left["documents"] == 1 and set(left) >= set(held)


def test_only_what_changed_is_encoded_again(
    made: str, files: Path, model: str, asked: Asked
) -> None:
    (files / "bread.md").write_text("# Bread\n\nNow with rye.\n")
    (files / "refunds.txt").unlink()
    again = asked("index", str(files), "--index", made)
    assert (again["added"], again["updated"], again["removed"]) == (0, 1, 0)
    pruned = asked("index", str(files), "--index", made, "--prune")
    assert (pruned["added"], pruned["updated"], pruned["removed"]) == (0, 0, 1)
    assert pruned["documents"] == 1


def test_check_names_what_is_damaged(made: str, asked: Asked) -> None:
    segments = (file for file in Path(made).glob("segments/**/*") if file.is_file())
    largest = max(segments, key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    found = asked("check", "--index", made, code=1)
    assert found["ok"] is False and {"file", "what"} <= set(found["damaged"][0])


def test_repair_compact_and_the_recall_meter(made: str, tmp_path: Path, asked: Asked) -> None:
    largest = max(Path(made).glob("segments/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    mended = asked("repair", "--index", made)
    assert mended["ok"] and {d["file"] for d in mended["damaged"]} == {f"segments/{largest.name}"}
    assert mended["documents"] == 2 and mended["skipped"] == []
    assert asked("check", "--index", made) == {"ok": True, "damaged": []}

    asked("delete", "--index", made, "--source", "*.md")
    held = asked("compact", "--index", made)
    assert held["documents"] == 1 and held["bytes"] > 0 and held["bytes_before"] > 0

    found = asked("check", "--index", made, "--recall", "-k", "3")["recall"]
    assert (found["k"], found["value"]) == (3, 1.0) and found["queries"] >= 1
    queries = tmp_path / "queries.txt"
    queries.write_text("refund\n\nthe form\n")
    meter = ("check", "--index", made, "--recall", "--queries", str(queries), "--target", ".9")
    found = asked(*meter, "--keep")["recall"]
    assert found["queries"] == 2 and found["reached"]


def test_batches_are_encoded_as_jobs_and_attached(
    files: Path, model: str, tmp_path: Path, asked: Asked, failed: Callable[..., str]
) -> None:
    into, index = str(tmp_path / "segments"), str(tmp_path / "joined.index")
    job = ("encode", str(files), "--into", into, "--model", model, "--meta", "team=desk")
    batch = asked(*job)
    assert batch == asked(*job)
    assert (batch["documents"], len(batch["skipped"])) == (2, 1)
    report = asked("attach", batch["folder"], "--index", index)
    assert (report["added"], len(report["skipped"])) == (2, 1)
    assert asked("attach", batch["folder"], "--index", index)["unchanged"] == 2
    found = asked("search", "refund", "--index", index, "--filter", "team=desk")
    assert found["hits"][0]["source"] == str(files / "refunds.txt")
    assert "encode_segment" in failed("attach", str(files), "--index", index)


def test_filters_by_date_and_codecs(
    files: Path, model: str, tmp_path: Path, asked: Asked, failed: Callable[..., str]
) -> None:
    index = str(tmp_path / "small.index")
    os.utime(files / "refunds.txt", (1_600_000_000, 1_600_000_000))  # 2020-09-13
    made = ("index", str(files), "--index", index, "--model", model)
    asked(*made, "--codec", "4bit")
    assert "4bit" in failed(*made, "--codec", "int8")
    search = ("search", "refund bread", "--index", index, "--filter")
    for condition, names in (
        ("date=2020-09", {"refunds.txt"}),
        ("date>=2021", {"bread.md"}),
        ("date<2021", {"refunds.txt"}),
    ):
        assert {Path(h["source"]).name for h in asked(*search, condition)["hits"]} == names


def test_evaluate(tmp_path: Path, model: str, asked: Asked) -> None:
    def lines(name: str, *rows: dict[str, str]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    texts = {"a": "the lazy dog", "b": "butter a cake tin", "c": "the river Seine in Paris"}
    lines("corpus.jsonl", *({"_id": i, "title": "", "text": t} for i, t in texts.items()))
    lines("queries.jsonl", {"_id": "q", "text": "cake"}, {"_id": "r", "text": "river"})
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\nr\tc\t1\n")
    found = asked("evaluate", str(tmp_path), "--model", model, "--mode", "lexical")
    assert {"ndcg@10", "recall@100", "mrr@10", "map", "queries", "documents", "seconds"} <= set(
        found
    )
    assert found["ndcg@10"] == pytest.approx(1.0) and found["queries"] == 2
    assert {"encode", "search"} <= set(found["seconds"])


# ---- chat -----------------------------------------------------------------------------------


def test_chat_of_one_prompt(chat_model: str, asked: Asked) -> None:
    line = ("chat", "The quick", "--model", chat_model, "--max-tokens", "5", "--temperature", "0")
    first, second = asked(*line), asked(*line)
    assert first["text"] == second["text"]
    assert first["finish_reason"] in {"stop", "length"}
    assert first["usage"]["prompt_tokens"] > 0 and first["usage"]["completion_tokens"] <= 5
    assert set(first["timings"]) >= {"first_token_s", "tokens_per_s"}


def test_chat_reads_a_piped_prompt(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello from a pipe\n"))
    assert "hello from a pipe" in asked("chat", "--model", "echo")["text"]


def test_chat_without_any_checkpoint_says_what_to_fetch(failed: Callable[..., str]) -> None:
    told = failed("chat", "hi", "--offline")
    assert "lfm2-mm fetch LFM2-350M" in told and "--model echo" in told


class Keyboard(io.StringIO):
    """A terminal with somebody who types."""

    def isatty(self) -> bool:
        return True


def test_a_session_goes_on_from_turn_to_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("one fish\ntwo fish\n/new\nred\n/exit\nnever\n"))
    assert cli.main(["chat", "--model", "echo"]) == 0
    shown = capsys.readouterr()
    assert "one fish" in shown.out and "two fish" in shown.out and "never" not in shown.out
    assert "/exit" in shown.err
    monkeypatch.setattr(sys, "stdin", Keyboard("end of file ends it too"))
    assert cli.main(["chat", "--model", "echo"]) == 0


@pytest.mark.parametrize("argv", [["chat", "--json"], ["chat", ""]])
def test_a_session_is_no_json_and_a_prompt_not_empty(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(""))
    assert cli.main([*argv, "--model", "echo"]) == 2


def test_flags_override_the_advice_and_greedy_drops_it() -> None:
    def given(**flags: float) -> SimpleNamespace:
        return SimpleNamespace(**{**dict.fromkeys(FIELDS), **flags})

    advice = Sampling(temperature=0.3, min_p=0.15, repetition_penalty=1.05, max_tokens=99)
    assert sampling_of(given(), advice) == advice
    assert sampling_of(given(seed=1, top_k=5), advice) == Sampling(
        temperature=0.3, min_p=0.15, repetition_penalty=1.05, max_tokens=99, seed=1, top_k=5
    )
    assert sampling_of(given(temperature=0.0), advice) == Sampling(temperature=0.0, max_tokens=99)
    assert sampling_of(given(temperature=0.0, repetition_penalty=1.2), advice) == Sampling(
        temperature=0.0, max_tokens=99, repetition_penalty=1.2
    )


# ---- processes ------------------------------------------------------------------------------


def test_ctrl_c_is_130_and_keeps_what_was_finished(
    tmp_path: Path, model: str, asked: Asked
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3000):
        (folder / f"{i}.txt").write_text(f"document {i}: the lazy dog sleeps. " * 40)
    index = tmp_path / "many.index"
    running = start("index", str(folder), "--index", str(index), "--model", model)
    deadline = time.monotonic() + 120
    while not list(index.rglob("*")) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 130, told
    assert "Traceback" not in told
    assert asked("check", "--index", str(index)) == {"ok": True, "damaged": []}


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = start("models", stdout=writing)
    os.close(writing)
    _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (0, "")


def test_a_full_disk_for_the_output_is_told() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("w") as out:
        running = start("models", stdout=out)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 1 and "No space left" in told and "Traceback" not in told
