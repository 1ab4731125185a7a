"""The public names, written down: a change of them is a decision, not an accident."""

from __future__ import annotations

from importlib import import_module
from typing import is_typeddict

import pytest

PUBLIC = {
    "lfm2_mm": """
        Audio AudioChunk Done Image LfmError Message Progress Sampling Text TextDelta Usage
        __version__
    """,
    "retrieval": """
        Batch Damage Encoder Evaluation Fusion Hit Index Info Match Progress Recall Report
        Skipped Source
        encode_segment evaluate fingerprint_of maxsim open open_encoder
    """,
    "audio": """
        Conversation Manner Reply Session Speech open
    """,
    "vision": """
        PRESETS Chat Grid ImageRule Size TilePlan TokenBudget VisionEncoder
        open plan_all plan_tiles read_rule
    """,
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_those_written_here(package: str) -> None:
    module = import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_explain_themselves(package: str) -> None:
    module = import_module(package)
    public = {n: getattr(module, n) for n in module.__all__ if n[0] != "_"}
    assert [n for n, it in public.items() if not it.__doc__ and not is_typeddict(it)] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    import retrieval

    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        retrieval.opne  # noqa: B018
