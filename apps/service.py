"""What one process serves: checkpoints, opened once, each with its lane; indexes by name.

Opened by `wiring.open_service`. Knows what each is for; knows no HTTP and no pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.lanes import Lane
from lfm2_mm.errors import BadInput, IndexMissing, LfmError

if TYPE_CHECKING:
    from lfm2_mm.registry import Kind
    from retrieval.index import Index


class UnknownModel(LfmError):
    """No model of this name is served."""


class Conflict(BadInput):
    """A document of this id is there already."""


@dataclass(frozen=True, eq=False)
class Served:
    """A checkpoint at work. Every use of `engine` goes through `lane`.

    engine: an Engine for the kinds chat and vision, an audio.Speech for speech, a retrieval Encoder
    for colbert.
    """

    name: str
    kind: Kind
    engine: Any
    lane: Lane
    created: int = 0  # seconds since 1970


class Service:
    """The models and indexes of one process; closed once."""

    def __init__(
        self, models: Iterable[Served], indexes: Mapping[str, Index] | None = None
    ) -> None:
        """Raises BadInput where two models have one name."""
        self.models: dict[str, Served] = {}
        for model in models:
            if model.name in self.models:
                raise BadInput(f"two models are called {model.name!r}; rename one of the folders")
            self.models[model.name] = model
        self.indexes = dict(indexes or {})
        self.writing = {name: Lane(f"index {name}") for name in self.indexes}
        self.changing = {name: threading.Lock() for name in self.indexes}  # the pages write too
        self.searching = Lane("search", waiting=32)
        self.stopping = False

    def find(self, name: str, *kinds: Kind) -> Served:
        """The model of this name, if it is of one of `kinds`; as a path, its last part counts.

        Raises UnknownModel, BadInput for one of another kind; both name what would do.
        """
        model = self.models.get(name) or self.models.get(Path(name).name)
        fitting = [m.name for m in self.models.values() if not kinds or m.kind in kinds]
        would_do = f"; {', '.join(fitting)} would do" if fitting else ""
        if model is None:
            raise UnknownModel(f"no model {name!r} is served{would_do}")
        if kinds and model.kind not in kinds:
            raise BadInput(
                f"{model.name} is a {model.kind} model; {' or '.join(kinds)} is asked{would_do}"
            )
        return model

    def first(self, *kinds: Kind) -> Served | None:
        """The first model of one of `kinds`."""
        return next((m for m in self.models.values() if m.kind in kinds), None)

    def answering(self) -> Served | None:
        """Who can answer from passages; the echo cannot."""
        chats = (m for m in self.models.values() if m.kind == "chat" and m.name != "echo")
        return next(chats, None)

    def index(self, name: str) -> Index:
        """Raises IndexMissing, naming those that are there."""
        return self.indexes[self.index_name(name)]

    def index_name(self, name: str) -> str:
        """The full name of an index; `.index` at its end may be left out."""
        for known in (name, f"{name}.index"):
            if known in self.indexes:
                return known
        there = f"there are {', '.join(self.indexes)}" if self.indexes else "none is served"
        raise IndexMissing(f"no index {name!r}; {there}; `serve --index FOLDER` serves one")

    @property
    def lanes(self) -> list[Lane]:
        return [*(m.lane for m in self.models.values()), *self.writing.values(), self.searching]

    def drain(self, seconds: float = 10.0) -> None:
        """Take nothing more, and wait until what was begun is done, but not longer than that."""
        self.stopping = True
        for lane in self.lanes:
            lane.stopping = True
        end = time.monotonic() + seconds
        while any(lane.jobs for lane in self.lanes) and time.monotonic() < end:
            time.sleep(0.02)

    def close(self) -> None:
        """Wait for the steps that are being computed, then let go of everything."""
        for lane in self.lanes:
            lane.close()
        for model in self.models.values():
            if hasattr(model.engine, "close"):
                model.engine.close()
        for index in self.indexes.values():
            index.close()
