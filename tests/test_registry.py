"""The table of checkpoints: complete, findable, honest about what is not known, and light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lfm2_mm.errors import UnknownCheckpoint
from lfm2_mm.registry import TABLE, bundled, find, is_hub_id, knows

PUBLISHED = (
    *("LFM2-350M", "LFM2-700M", "LFM2-1.2B", "LFM2-2.6B", "LFM2-8B-A1B"),
    *("LFM2.5-230M", "LFM2.5-350M", "LFM2.5-1.2B-Base", "LFM2.5-1.2B-Instruct"),
    *("LFM2.5-1.2B-Thinking", "LFM2.5-1.2B-JP"),
    *("LFM2-VL-450M", "LFM2-VL-1.6B", "LFM2-VL-3B", "LFM2.5-VL-450M", "LFM2.5-VL-1.6B"),
    *("LFM2-Audio-1.5B", "LFM2.5-Audio-1.5B", "LFM2-ColBERT-350M", "LFM2.5-ColBERT-350M"),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_checkpoint_is_found_by_name_and_by_hub_id(name: str) -> None:
    row = find(name)
    assert row is find(f"LiquidAI/{name}") is find(name.upper()) is find(f" {name}\n")
    assert row.repo == f"LiquidAI/{name}"
    assert row.licence == "LFM Open License v1.0"


def test_kinds() -> None:
    for part, kind in [("-VL-", "vision"), ("-Audio-", "speech"), ("-ColBERT-", "colbert")]:
        assert {row.kind for row in TABLE if part in row.name} == {kind}
    assert find("LFM2.5-1.2B-JP").kind == "chat"


def test_rows_are_distinct_and_lie_somewhere() -> None:
    assert len({row.name.lower() for row in TABLE}) == len(TABLE)
    assert all((row.repo is None) != (row.bundled is None) for row in TABLE)


def test_advice_of_the_cards() -> None:
    text, vision = find("LFM2-1.2B").sampling, find("LFM2-VL-450M").sampling
    assert text and (text.temperature, text.min_p, text.repetition_penalty) == (0.3, 0.15, 1.05)
    assert vision and (vision.temperature, vision.min_p) == (0.1, 0.15)
    assert find("LFM2-VL-3B").parameters is None  # two figures are in circulation


def test_the_bundled_one_of_a_kind() -> None:
    rows = bundled("colbert"), bundled("vision"), bundled("speech")
    assert [row and row.name for row in rows] == ["nano-colbert", "nano-vl", "nano-audio"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("LFM2-360M", "LFM2-350M"), ("LiquidAI/LFM2-1.3B", "LFM2-1.2B"), ("nanocolbert", "nano-")],
)
def test_a_typing_error_is_answered_with_what_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=f"did you mean .*{meant}"):
        find(typed)


@pytest.mark.parametrize("name", ["", " ", "../x", "a\nb", "x" * 9_999, "\0", "LFM2-350M/..", "é"])
def test_hostile_names_are_unknown_in_one_short_line(name: str) -> None:
    with pytest.raises(UnknownCheckpoint) as caught:
        find(name)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 300
    assert not knows(name) and not is_hub_id(name)


def test_hub_ids() -> None:
    assert is_hub_id("lightonai/GTE-ModernColBERT-v1")
    for wrong in ["a", "a/b/c", "/a", "a/", "a b/c", "a/..", "a/b\n", "-a/b", "a--b/c"]:
        assert not is_hub_id(wrong)


def test_the_table_needs_no_heavy_library() -> None:
    code = (
        "import sys, lfm2_mm.registry\n"
        "sys.exit(','.join({'torch', 'transformers', 'numpy', 'httpx'} & set(sys.modules)) or None)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, f"imported: {child.stderr}"
