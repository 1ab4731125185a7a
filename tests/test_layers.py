"""Imports point downwards, the light stays light, and the wheel holds what the tree holds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "lfm2_mm": {"lfm2_mm"},
    "vision": {"vision", "lfm2_mm"},
    "audio": {"audio", "lfm2_mm"},
    "retrieval": {"retrieval", "lfm2_mm"},
    "apps": {"apps", "retrieval", "audio", "vision", "lfm2_mm"},
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
OURS = set(MAY_IMPORT) | {"tests", "recipes", "benchmarks"}


def sources() -> list[Path]:
    return [path for top in MAY_IMPORT for path in sorted((ROOT / top).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import statement, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    for level, module in imports(path):
        assert level == 0, f"relative import of {module}"
        top = module.partition(".")[0]
        assert top not in OURS - MAY_IMPORT[layer], f"{layer} must not import {module}"


def test_the_walk_sees_imports_inside_functions_and_relative_ones(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "def f():\n    import apps.cli\nfrom . import y\nfrom a.b import c"
    )
    assert set(imports(tmp_path / "x.py")) == {(0, "apps.cli"), (1, ""), (0, "a.b")}


@pytest.mark.parametrize(
    "module",
    [
        "lfm2_mm",
        "lfm2_mm.types",
        "lfm2_mm.errors",
        "lfm2_mm.registry",
        "lfm2_mm.checkpoint",
        "lfm2_mm.prompt",
        "lfm2_mm.pictures",
        "vision",
        "vision.tiling",
        "vision.settings",
        "audio",
        "audio.config",
        "audio.modes",
        "audio.turns",
        "retrieval",
        "retrieval.documents",
        "retrieval.index",
        "apps.cli",
        "apps.doctor",
        "apps.verbs.see",
    ],
)
def test_heavy_libraries_stay_out(module: str) -> None:
    code = (
        f"import sys, json, {module}\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'gradio', 'pylate'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == []


def test_packages_in_pyproject_are_the_folders() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in sources()}
    assert set(PACKAGES) == folders
    for package in PACKAGES:
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file()


def test_files_beside_the_code_are_in_the_wheel() -> None:
    """Every data file lies in a package and under one of its patterns."""
    patterns = [
        f"{package.replace('.', '/')}/{pattern.replace('**/', '')}"
        for package, given in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in given
    ]
    for top in MAY_IMPORT:
        for path in (ROOT / top).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_dir() or path.suffix == ".py" or "__pycache__" in name:
                continue
            assert any(fnmatch(name, pattern) for pattern in patterns), f"{name} is left out"
