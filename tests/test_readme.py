"""What readers will paste is executed: Python blocks, and console blocks marked as tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BESIDE = re.findall(r"^<!-- runs beside the server -->\n```(\w+)\n(.*?)^```", README, re.M | re.S)
PYTHON = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    if ("python", block) not in BESIDE
]
CONSOLE = re.findall(r"^<!-- runs as a test -->\n```console\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with README and docs, as a reader has in front of him."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def run(arguments: list[str], folder: Path) -> str:
    """Stdout of a program started in `folder`, with the source tree importable."""
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run_and_show_something(block: str, copy: Path) -> None:
    assert run([sys.executable, "-c", block], copy).strip()


@pytest.mark.parametrize("block", CONSOLE, ids=range(len(CONSOLE)))
def test_console_blocks_run_and_show_something(block: str, copy: Path) -> None:
    for line in block.splitlines():
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "lfm2-mm")
        assert run([sys.executable, "-m", "apps.cli", *arguments], copy).strip(), line


def test_blocks_beside_the_server_run_and_show_something(copy: Path) -> None:
    """The server that the README starts, and every block that asks it."""
    if shutil.which("curl") is None:
        pytest.skip("the README's blocks need curl")
    run([sys.executable, "-m", "apps.cli", "index", "docs", "--index", "my.index"], copy)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (started,) = re.findall(r"^\$ lfm2-mm (serve .*)$", README, re.M)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    server = subprocess.Popen(
        [sys.executable, "-m", "apps.cli", *shlex.split(started), "--port", port],
        cwd=copy, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        assert any("Ctrl-C" in line for line in server.stderr)
        assert len(BESIDE) >= 2
        for language, block in BESIDE:
            there = block.replace(":7860", f":{port}")
            program = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
            shown = run([*program, there], copy)
            assert shown.strip() and '"error"' not in shown, shown
    finally:
        server.kill()
        server.communicate()


def test_the_first_lines_say_what_it_is_and_how_to_start() -> None:
    start = "\n".join(README.splitlines()[:30])
    assert all(part in start for part in ("make demo", "make test", "$ lfm2-mm search", "|---|"))
    assert CONSOLE and CONSOLE[0] in start and len(PYTHON) >= 2


def test_every_word_of_make_and_every_variable_exists() -> None:
    words = set(re.findall(r"`make ([a-z-]+)", README)) | {"help", "bench"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert words <= set(re.findall(r"^([a-z-]+):", makefile, re.M))
    extras = set(re.findall(r"\[([\w,]+)\]' -c", README)[0].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])
    source = (ROOT / "lfm2_mm" / "checkpoint.py").read_text(encoding="utf-8")
    variables = re.findall(r"^\| `([A-Z].*?) \|", README, re.M)
    for name in re.findall(r"[A-Z][A-Z0-9_]{4,}", " ".join(variables)):
        assert f'"{name}"' in source


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
