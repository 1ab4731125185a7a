"""Pictures for LFM2-VL: planned exactly, encoded once, talked about. `vision.open` begins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.chat import Chat, open
    from vision.encoder import VisionEncoder
    from vision.rule import Grid, ImageRule, Size
    from vision.settings import read_rule
    from vision.tiling import PRESETS, TilePlan, TokenBudget, plan_all, plan_tiles

_HOMES = {
    "chat": ("Chat", "open"),
    "encoder": ("VisionEncoder",),
    "rule": ("Grid", "ImageRule", "Size"),
    "settings": ("read_rule",),
    "tiling": ("PRESETS", "TilePlan", "TokenBudget", "plan_all", "plan_tiles"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "Chat",
    "Grid",
    "ImageRule",
    "Size",
    "TilePlan",
    "TokenBudget",
    "VisionEncoder",
    "open",
    "plan_all",
    "plan_tiles",
    "read_rule",
]


def __getattr__(name: str) -> Any:
    """Each name's module is imported when the name is first used: planning needs no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'vision' has no attribute {name!r}")
    return getattr(import_module(f"vision.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
