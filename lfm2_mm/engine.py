"""One seam for everything that answers a conversation, and the table of what stands behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from lfm2_mm.errors import BadInput
from lfm2_mm.types import Event, Message, Sampling

# name -> module with `open(name, **how)`; it says itself which optional library it lacks
ENGINES = {
    "native": "lfm2_mm.engines.native",
    "echo": "lfm2_mm.engines.echo",
    "remote": "lfm2_mm.engines.remote",
    "gguf": "lfm2_mm.engines.gguf",
}


class Engine(Protocol):
    """Answers conversations. Made by `open_engine`; closed once."""

    name: str  # of the checkpoint
    accepts: frozenset[type]  # part types: Text, Image, Audio
    advice: Sampling  # the checkpoint's own, the default

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        """Yield TextDelta as the reply comes and Done last; closing the iterator stops the work."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


def open_engine(
    name_or_path: str | Path,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    active_experts: int | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
) -> Engine:
    """Open the checkpoint `name_or_path` behind an engine.

    `auto` takes echo for the name "echo", remote for a server's address (`http://host:8080/v1`, or
    with `#name` of a model) and where `base_url` is given, llama.cpp for a file that ends in .gguf,
    and the native backbone for everything else. Raises BadInput for an unknown engine,
    MissingExtra, and what loading raises.
    """
    if engine == "auto":
        engine = kind_of(str(name_or_path), base_url)
    if engine not in ENGINES:
        raise BadInput(f"no engine {engine!r}; known are {', '.join(ENGINES)}")
    opened: Engine = import_module(ENGINES[engine]).open(
        name_or_path, device=device, dtype=dtype, offline=offline, active_experts=active_experts,
        **({"base_url": base_url, "api_key": api_key} if engine == "remote" else {}),
    )  # fmt: skip
    return opened


def kind_of(name: str, base_url: str | None = None) -> str:
    """Which engine stands behind a name."""
    if base_url is not None or name.lower().startswith(("http://", "https://")):
        return "remote"
    if name.lower().endswith(".gguf"):
        return "gguf"
    return "echo" if name == "echo" else "native"
