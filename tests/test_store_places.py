"""Where stores lie: addresses that are none, what is missing, damaged, or open elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lfm2_mm.errors import BadInput, IndexBusy, IndexMissing, LfmError, MissingExtra
from retrieval import stores
from retrieval.stores.collection import open_collection
from tests.words_encoder import WordsEncoder

TEXTS = [(f"d{n}", f"word{n} and word{n + 1}", f"title {n}") for n in range(4)]


def test_addresses() -> None:
    for address in ("lancedb", "lancedb:", "milvus:x", "qdrant"):
        with pytest.raises(BadInput, match="lancedb:FOLDER_OR_BUCKET"):
            stores.open_store(address)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("lancedb:s3://", "bucket"), ("lancedb:nope://x", "scheme"),
        ("qdrant:http://h:99999", "it is like qdrant:http://"), ("qdrant:http://[bad", "is like"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_told(address: str, told: str) -> None:
    if not find_spec("lancedb" if address.startswith("lancedb") else "qdrant_client"):
        pytest.skip("not installed")
    with pytest.raises(LfmError, match=told):
        stores.open_store(address)


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    """LanceDB names the file; nothing of it is served."""
    pytest.importorskip("lancedb")
    address = f"lancedb:{tmp_path / 'store'}"
    with open_collection(address, model=WordsEncoder(), create=True) as collection:
        collection.add_texts(TEXTS)
    for path in (tmp_path / "store" / "passages.lance" / "data").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    with open_collection(address, model=WordsEncoder()) as collection:
        for ask in (lambda: collection.search("word1"), collection.check, collection.sources):
            with pytest.raises(LfmError, match="cannot be used"):
                ask()


def test_a_panic_of_the_engine_is_told(tmp_path: Path) -> None:
    """Qdrant's engine panics at a status file that was cut: to Python that is no Exception."""
    pytest.importorskip("qdrant_edge")
    address = f"qdrant:{tmp_path / 'store'}"
    with open_collection(address, model=WordsEncoder(), create=True) as collection:
        collection.add_texts(TEXTS)
    for path in (tmp_path / "store").rglob("vector_storage-tokens/offsets/status.dat"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(LfmError, match="store"):
        open_collection(address, model=WordsEncoder()).search("word1")


def test_what_is_not_installed_or_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    for engine in ("lancedb", "qdrant"):
        with pytest.raises(MissingExtra, match=rf"pip install 'lfm2-mm\[{engine}\]'"):
            stores.open_store(f"{engine}:{tmp_path}")
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.txt").write_text("x")
    for engine, needs in (("lancedb", "lancedb"), ("qdrant", "qdrant_edge")):
        if find_spec(needs):
            with pytest.raises(IndexMissing, match="makes one"):
                stores.open_store(f"{engine}:{tmp_path / 'none'}")
            for place in ("a", "a/x.txt"):
                with pytest.raises(BadInput, match=r"new"):
                    stores.open_store(f"{engine}:{tmp_path / place}", create=True)
            with pytest.raises(LfmError, match="cannot write to"):
                open_collection(
                    f"{engine}:{tmp_path / 'a/x.txt/deep'}", model=WordsEncoder(), create=True
                ).add_texts(TEXTS[:1])


def test_a_shard_that_another_process_has_open_is_busy(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    with open_collection(f"qdrant:{tmp_path / 's'}", model=WordsEncoder(), create=True) as one:
        one.add_texts(TEXTS[:1])
        code = "import sys; from retrieval import stores; stores.open_store(sys.argv[1]).count()"
        command = [sys.executable, "-c", code, f"qdrant:{tmp_path / 's'}"]
        other = subprocess.run(command, capture_output=True, text=True)
    assert IndexBusy.__name__ in other.stderr
