"""Search by meaning over your own documents. `retrieval.open` is where to begin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.batches import encode_segment
    from retrieval.encoder import Encoder, fingerprint_of, open_encoder
    from retrieval.evaluation import Evaluation, evaluate
    from retrieval.fusion import Fusion
    from retrieval.index import Index, open
    from retrieval.recall import Recall
    from retrieval.scoring import maxsim
    from retrieval.types import (
        Batch,
        Damage,
        Hit,
        Info,
        Match,
        Progress,
        Report,
        Skipped,
        Source,
    )

_HOMES = {
    "batches": ("encode_segment",),
    "encoder": ("Encoder", "fingerprint_of", "open_encoder"),
    "evaluation": ("Evaluation", "evaluate"),
    "fusion": ("Fusion",),
    "index": ("Index", "open"),
    "scoring": ("maxsim",),
    "recall": ("Recall",),
    "types": (
        "Batch",
        "Damage",
        "Hit",
        "Info",
        "Match",
        "Progress",
        "Report",
        "Skipped",
        "Source",
    ),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "Damage",
    "Encoder",
    "Evaluation",
    "Fusion",
    "Hit",
    "Index",
    "Info",
    "Match",
    "Progress",
    "Recall",
    "Report",
    "Skipped",
    "Source",
    "encode_segment",
    "evaluate",
    "fingerprint_of",
    "maxsim",
    "open",
    "open_encoder",
]


def __getattr__(name: str) -> Any:
    """Each name's module is imported when the name is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
