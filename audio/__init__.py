"""Speech in and out: LFM2-Audio hears, thinks and speaks. `audio.open` is where to begin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio.conversation import Conversation, Manner
    from audio.reply import Reply
    from audio.session import Session
    from audio.speech import Speech, open

_HOMES = {
    "conversation": ("Conversation", "Manner"),
    "reply": ("Reply",),
    "session": ("Session",),
    "speech": ("Speech", "open"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["Conversation", "Manner", "Reply", "Session", "Speech", "open"]


def __getattr__(name: str) -> Any:
    """Each name's module is imported when the name is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'audio' has no attribute {name!r}")
    return getattr(import_module(f"audio.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
