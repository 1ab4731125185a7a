"""What readers will paste is executed: Python blocks, and console blocks marked as tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
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
