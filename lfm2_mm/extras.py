"""Optional libraries: imported when they are asked for; a missing one names its command."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lfm2_mm.errors import MissingExtra


def require(extra: str, *modules: str) -> None:
    """Raise MissingExtra unless all are installed. Nothing is imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtra(
            f"{' and '.join(missing)} {verb} not installed: pip install 'lfm2-mm[{extra}]'"
        )


def need(extra: str, module: str) -> Any:
    """The module, imported; a fault inside of it surfaces as itself. Raises MissingExtra."""
    require(extra, module)
    return import_module(module)
