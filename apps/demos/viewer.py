"""What the page about pictures asks of an engine: costs, replies, stops. Knows no browser."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from apps.demos.pace import Pace
from lfm2_mm.errors import OverBudget
from lfm2_mm.types import Done, Event, Image, Message, Sampling
from vision.rule import Size
from vision.tiling import TilePlan, TokenBudget, plan_all

if TYPE_CHECKING:
    from vision import Chat

SESSIONS = 8  # conversations whose state is kept; the ones not used for longest go
TRIED = (64, 64, 256)  # image tokens at the start; the first time is not like the others
AROUND = 16  # tokens of a short question and of the template


@dataclass(frozen=True)
class Cost:
    """What a question will cost before the first word of its answer."""

    image_tokens: int
    structural_tokens: int
    seconds: float | None  # None: nothing was measured yet


class Viewer:
    """One checkpoint, and a conversation for every visitor. Safe to use from several threads."""

    def __init__(self, engine: Chat) -> None:
        self.engine = engine
        self.looking, self.reading = Pace(), Pace()
        self._engines: OrderedDict[tuple[str, TokenBudget], Chat] = OrderedDict()
        self._stops: dict[str, set[threading.Event]] = {}
        self._lock = threading.Lock()

    def plans(self, images: Sequence[Image], budget: TokenBudget) -> list[TilePlan]:
        """Raises OverBudget."""
        sizes = [Size(image.height, image.width) for image in images]
        return plan_all(sizes, budget, self.engine.pictures.rule)

    def cost(
        self, images: Sequence[Image], plans: Sequence[TilePlan], *, anew: bool = False
    ) -> Cost:
        """What a new question about these pictures will cost; `anew`: for `look_anew`."""
        encoder = self.engine.pictures.encoder
        new = {
            (image.key, plan): plan.tokens
            for image, plan in zip(images, plans, strict=True)
            if anew or not encoder.knows(image, plan)
        }
        tokens = sum(plan.tokens for plan in plans)
        marks = sum(plan.structural_tokens for plan in plans)
        look = self.looking.predict(sum(new.values()))
        read = self.reading.predict(tokens + marks + AROUND)
        return Cost(tokens, marks, None if look is None or read is None else look + read)

    def reply(
        self, session: str, messages: Sequence[Message], budget: TokenBudget
    ) -> Generator[Event, None, None]:
        """The events of a reply; after `stop`, or when closed, nothing more is computed."""
        return self._followed(session, self._engine(session, budget), messages)

    def look_anew(
        self, session: str, messages: Sequence[Message], budget: TokenBudget
    ) -> Generator[Event, None, None]:
        """As `reply`, with nothing remembered before or after: times are those of a first look."""
        return self._followed(session, self.engine.at(budget, remember=False), messages)

    def stop(self, session: str) -> None:
        """End this visitor's replies with the step that is being computed."""
        with self._lock:
            for stopping in self._stops.get(session, ()):
                stopping.set()

    def leave(self, session: str) -> None:
        """This visitor is gone: stop, and forget the conversation."""
        self.stop(session)
        with self._lock:
            for key in [key for key in self._engines if key[0] == session]:
                del self._engines[key]

    def warm_up(self) -> None:
        """Look at plain pictures, so that times can be foretold before the first question."""
        shown = Image.open(np.full((512, 512, 3), 128, np.uint8))
        asked, briefly = [Message.user(shown, "What?")], replace(self.engine.advice, max_tokens=1)
        for tokens in TRIED:
            with suppress(OverBudget):
                engine = self.engine.at(TokenBudget(tokens), remember=False)
                list(self._followed("", engine, asked, briefly))

    def _engine(self, session: str, budget: TokenBudget) -> Chat:
        """This visitor's conversation under a budget; another budget is another conversation."""
        with self._lock:
            engine = self._engines.pop((session, budget), None) or self.engine.at(budget)
            self._engines[(session, budget)] = engine
            while len(self._engines) > SESSIONS:
                self._engines.popitem(last=False)
            return engine

    def _followed(
        self,
        session: str,
        engine: Chat,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
    ) -> Generator[Event, None, None]:
        prompt = engine.prompt(messages)
        encoder = engine.pictures.encoder
        new = [p for p in prompt.places if not encoder.knows(cast(Image, p.part), p.slot.plan)]
        stream = cast("Generator[Event, None, None]", engine.stream(messages, sampling))
        with self._stoppable(session) as stopping, closing(stream):
            for event in stream:
                if isinstance(event, Done):
                    read = event.usage.prompt_tokens - event.usage.reused_tokens
                    looked = {p.slot.key: p.slot.tokens for p in new}
                    self.looking.learn(sum(looked.values()), event.timings.vision_s)
                    rest = event.timings.first_token_s - event.timings.vision_s
                    self.reading.learn(read, rest)
                yield event
                if stopping.is_set() and not isinstance(event, Done):
                    yield Done("cancelled")
                    return

    @contextmanager
    def _stoppable(self, session: str) -> Iterator[threading.Event]:
        stopping = threading.Event()
        with self._lock:
            self._stops.setdefault(session, set()).add(stopping)
        try:
            yield stopping
        finally:
            with self._lock:
                self._stops[session].discard(stopping)
                if not self._stops[session]:
                    del self._stops[session]
