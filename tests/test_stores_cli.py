"""Stores from the command line: index, search, filter, delete, evaluate, check, copy and back."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from apps import cli
from tests.test_stores import NEEDS

ENGINES = ["lancedb", "qdrant"]


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if not find_spec(str(NEEDS[request.param])):
        pytest.skip(f"{NEEDS[request.param]} is not installed")
    return f"{request.param}:{tmp_path / 'store'}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "refunds.md").write_text("# Refunds\n\nMoney comes back within five days.")
    (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.")
    (folder / "bad.pdf").write_bytes(b"no pdf")
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:  # type: ignore[type-arg]
    assert cli.main([*words, "--json"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_every_verb_works_through_a_store(
    store: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--store", store)
    report = said(capsys, "index", str(files), *at, "--meta", "team=zoo")
    assert (report["store"], report["added"]) == (store, 2)
    assert [Path(one["path"]).name for one in report["skipped"]] == ["bad.pdf"]
    hits = said(capsys, "search", "when is money paid back?", *at)["hits"]
    assert [Path(hit["source"]).name for hit in hits] == ["refunds.md", "fox.txt"]
    where = ("--filter", "source=*.txt", "--filter", "team=zoo")
    hits = said(capsys, "search", "money", *at, *where)["hits"]
    assert [Path(hit["source"]).name for hit in hits] == ["fox.txt"]
    checked = said(capsys, "check", *at, "--recall")
    assert checked["ok"] and checked["recall"]["value"] == 1.0
    there = tmp_path / "index"
    out = said(capsys, "copy", "--index", str(there), *at, "--back")
    assert (out["documents"], out["copied"]) == (2, 2)
    again = said(capsys, "copy", "--index", str(there), *at)
    assert (again["unchanged"], again["checksum"]) == (2, out["checksum"])
    direct = said(capsys, "search", "money", "--index", str(there), "--mode", "colbert")["hits"]
    stored = said(capsys, "search", "money", *at)["hits"]
    assert [(h["text"], h["score"]) for h in direct] == [(h["text"], h["score"]) for h in stored]
    assert said(capsys, "delete", *at, "--source", "fox.txt")["documents"] == 1
    assert said(capsys, "compact", *at)["documents"] == 1
    assert said(capsys, "info", *at)["model"] == "nano-colbert"
    assert cli.main(["search", "money", *at, "--mode", "hybrid"]) == 1
    assert "index folder" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["lancedb"], indirect=True)
def test_evaluation_through_a_store(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beir = tmp_path / "beir"
    beir.mkdir()
    texts = {"a": "a red fox", "b": "money is paid back", "c": "the sky at night"}
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items()]
    (beir / "corpus.jsonl").write_text("\n".join(lines))
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "paid back money"}')
    (beir / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n")
    found = said(capsys, "evaluate", str(beir), "--store", store)
    assert (found["ndcg@10"], found["documents"]) == (1.0, 3)
    new = tmp_path / "new"
    assert cli.main(["evaluate", str(beir), "--store", f"lancedb:{new}", "--mode", "lexical"]) == 1
    assert "by meaning" in capsys.readouterr().err and not new.exists()


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--index", str(tmp_path), "--store", "lancedb:x"]
    assert cli.main(["search", "a", *both]) == 2
    assert cli.main(["search", "a"]) == 2
    assert cli.main(["search", "a", "--store", "milvus:x"]) == 1
    assert "lancedb:FOLDER_OR_BUCKET" in capsys.readouterr().err
