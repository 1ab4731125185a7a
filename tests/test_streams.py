"""The command line with streams that are closed, that nobody reads, or that take no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apps import cli
from apps.screen import Screen
from tests.test_cli import start

CLOSED = {  # a stream of the process -> how a shell starts it without
    "stdin": "<&-",
    "stdout": ">&-",
    "stderr": "2>&-",
}


@pytest.mark.skipif(os.name == "nt", reason="no such shell here")
@pytest.mark.parametrize("name", CLOSED)
def test_without_a_stream_the_work_is_done(name: str) -> None:
    line = '"$0" -m apps.cli models --json ' + CLOSED[name]
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    if name != "stdout":
        assert json.loads(done.stdout)[0]["source"] == "bundled"


@pytest.mark.skipif(os.name == "nt", reason="no such shell here")
def test_without_stdin_there_is_no_prompt() -> None:
    line = '"$0" -m apps.cli chat --model echo <&-'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True)
    assert done.returncode == 2 and "the prompt is empty" in done.stderr


def test_an_error_that_nobody_reads_is_still_an_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = start("info", "--index", str(tmp_path / "none"), stderr=writing)
    os.close(writing)
    shown, _ = running.communicate(timeout=60)
    assert (running.returncode, shown) == (1, "")


class Deaf:
    """A log on a full disk, or a pipe without a reader."""

    def __init__(self, error: OSError) -> None:
        self.error, self.asked = error, 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise self.error

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space")])
def test_progress_that_nobody_reads_stops_no_work(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.screen.BETWEEN_LINES_S", -1.0)
    deaf = Deaf(error)
    screen = Screen(as_json=False, out=sys.stdout, err=deaf)  # type: ignore[arg-type]
    with screen.progress("bytes") as tell:
        for done in range(5):
            tell(done, 4, "a file")
    screen.say("done")
    assert deaf.asked == 1


def test_an_interruption_before_a_verb_began_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Callable[..., object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_about_checkpoints", interrupted)
    assert cli.main(["models"]) == 130
    assert "Traceback" not in capsys.readouterr().err
