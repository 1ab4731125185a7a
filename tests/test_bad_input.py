"""Bad input at the command line: one line that says what to do, exit code 1, nothing lost."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apps import cli, screen
from apps.demos import site
from apps.verbs import collection
from lfm2_mm.errors import BadInput
from tests import tiny
from tests.conftest import Asked
from tests.indexes import files_of, flip

Failed = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.colbert_folder(tmp_path_factory.mktemp("model") / "tiny-colbert"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "refunds.txt").write_text("A refund takes five days. Ask the desk for a form.\n")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def made(files: Path, model: str, tmp_path: Path) -> str:
    """An index of `files`."""
    index = str(tmp_path / "my.index")
    assert cli.main(["index", str(files), "--index", index, "--model", model, "--json"]) == 0
    return index


@pytest.fixture
def loop(tmp_path: Path) -> str:
    """A link to itself."""
    try:
        (tmp_path / "loop").symlink_to("loop")
    except OSError:
        pytest.skip("no links here")
    return str(tmp_path / "loop")


def test_what_cannot_be_done_is_told_in_one_line(
    made: str, files: Path, model: str, tmp_path: Path, failed: Callable[..., str]
) -> None:
    new = str(tmp_path / "new.index")
    (tmp_path / "none").mkdir()
    assert "missing.txt" in failed("index", str(tmp_path / "missing.txt"), "--index", new)
    assert failed("index", str(tmp_path / "none"), "--index", new, "--model", model)
    assert failed("index", str(files / "empty.txt"), "--index", new, "--model", model)
    assert "none.index" in failed("search", "x", "--index", str(tmp_path / "none.index"))
    for verb in ("info", "check", "check --recall", "repair", "compact", "delete --source x"):
        assert "none.index" in failed(*verb.split(), "--index", str(tmp_path / "none.index"))
    assert failed("delete", "--index", made, "--source", "nothing-like-it")
    assert failed("search", "x", "--index", made, "--model", "nano-colbet")
    assert "LFM2-350M" in failed("fetch", "LFM2-35M")
    assert "offline" in failed("fetch", "LFM2-350M", "--offline")
    assert failed("evaluate", str(tmp_path / "none"), "--mode", "lexical")


def test_an_index_from_a_newer_version_is_refused(made: str, failed: Callable[..., str]) -> None:
    changed = 0
    for manifest in Path(made).glob("*.json"):
        record = json.loads(manifest.read_text())
        if "version" in record:
            manifest.write_text(json.dumps({**record, "version": 9999}))
            changed += 1
    assert changed, "no manifest with a version was found"
    for verb in (
        "info", "check", "repair", "compact", "search x", "delete --source x", "serve --port 0",
        "copy --store lancedb:new",
    ):  # fmt: skip
        assert "9999" in failed(*verb.split(), "--index", made)


def test_another_model_is_refused(
    made: str, failed: Callable[..., str], tmp_path: Path, files: Path
) -> None:
    other = str(tiny.colbert_folder(tmp_path / "other", seed=1))
    assert failed("search", "refund", "--index", made, "--model", other)
    assert failed("index", str(files), "--index", made, "--model", other)


def test_names_that_are_hostile_do_no_harm(
    tmp_path: Path, model: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = [b"new\nline.txt", b"esc\x1b[31m.txt", b"latin-\xe9.txt"]
    for name in names:
        (folder / os.fsdecode(name)).write_text("the lazy dog sleeps")
    index = str(tmp_path / "names.index")
    assert asked("index", str(folder), "--index", index, "--model", model)["added"] == 3
    assert len(asked("search", "dog", "--index", index, "--mode", "lexical")["hits"]) == 3
    assert cli.main(["search", "dog", "--index", index, "--mode", "lexical"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and len(shown.splitlines()) == 6  # two lines a hit


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a\nb"), "a b; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: x"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division by zero"), "--debug"),
    ],
)
def test_errors_of_the_machine_and_bugs_are_one_line(error: Exception, told: str) -> None:
    line = cli.told(error)
    assert told in line and "\n" not in line


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--index", str(tmp_path / "none"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("index LOOP --index new", "symbolic links"),
        ("index FILES --index LOOP", "new or an empty folder"),
        ("info --index LOOP", "is no index"),
        ("encode FILES --into LOOP", "is no folder"),
        ("attach LOOP --index new", "is no segment folder"),
        ("serve --port 0 --index LOOP", "new or an empty folder"),
        ("transcribe LOOP", "symbolic links"),
        ("see LOOP --plan", "symbolic links"),
        ("check --recall --queries LOOP --index MADE", "one a line"),
        ("evaluate LOOP", "lacks"),
    ],
)
def test_a_link_in_a_circle_is_told(
    line: str, told: str, loop: str, made: str, files: Path, failed: Failed
) -> None:
    places = {"LOOP": loop, "FILES": str(files), "MADE": made}
    assert told in failed(*(places.get(word, word) for word in line.split()))


def test_one_flipped_bit_in_any_file_is_named_and_never_served(
    made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def found() -> tuple[int, str]:
        code = cli.main(["search", "refund", "--index", made, "--json"])
        return code, capsys.readouterr().out.partition('"seconds"')[0]

    capsys.readouterr()
    truth = found()
    for name in files_of(Path(made)):
        path = Path(made) / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            flip(path, place)
            assert cli.main(["check", "--index", made, "--json"]) == 1
            told = json.loads(capsys.readouterr().out)
            assert not told["ok"] and name in {one["file"] for one in told["damaged"]}
            assert found() in (truth, (1, "")), (name, place)
            path.write_bytes(whole)
    assert cli.main(["check", "--index", made]) == 0


@pytest.mark.parametrize("name", ["manifest.json", "catalog.sums"])
def test_a_gigabyte_of_zeros_in_an_index_is_not_read(
    made: str, name: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (Path(made) / name).open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    (damage,) = asked("check", "--index", made, code=1)["damaged"]
    assert damage["file"] == name and "no JSON object" in damage["what"]


def test_what_is_piped_in_is_text_and_bounded(
    failed: Failed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.wav")
    for verb in (["chat", "--model", "echo"], ["speak", "-o", out]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
        assert "no UTF-8 text" in failed(*verb)
        monkeypatch.setattr(screen, "MOST_PIPED", 10)
        monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 11))
        assert "more than 10 characters" in failed(*verb)


def test_queries_are_read_from_a_file_of_a_sensible_size(
    made: str, tmp_path: Path, failed: Failed, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ("check", "--recall", "--index", made, "--queries")
    assert "one a line" in failed(*measure, str(tmp_path))
    assert "one a line" in failed(*measure, str(tmp_path / "none"))
    monkeypatch.setattr(collection, "MOST_QUERIES", 10)
    (tmp_path / "many").write_text("refund\n" * 3)
    assert "take some" in failed(*measure, str(tmp_path / "many"))


# ---- serving --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", " ", "ä", "a\nb"])
def test_a_server_without_its_key_does_not_start(key: str, failed: Failed) -> None:
    assert "an API key is made of" in failed("serve", "--port", "0", "--api-key", key)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    failed: Failed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.wiring.open_service", lambda args: pytest.fail("was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = failed("serve", "--port", str(server.getsockname()[1]))
    assert "--port takes another port" in told


@pytest.mark.parametrize("host", ["a" * 70, "..", "caf\udce9", "256.1.1.1", "::zz"])
def test_a_host_that_is_none_is_told(host: str) -> None:
    with pytest.raises(BadInput, match="--host 127.0.0.1 is this machine"):
        site.free_port(host, 0)
