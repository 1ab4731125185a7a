"""A lane is one thread for one engine: what is asked of it runs there, one step after the other.

Engines keep state between steps and may be stepped by one thread at a time. Whoever wants work of
an engine therefore asks its lane: requests of the server by `do` and `stream`, which wait for their
turn or are refused when too many wait; live conversations by `steps`, whose steps come between
those of the request that has its turn. Knows no engine and no HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import anyio

from lfm2_mm.errors import LfmError

T = TypeVar("T")
WAITING = 8  # requests that may wait for one engine
USUAL_S = 0.2  # a request takes so long, as long as none was measured
END: Final = object()


class Busy(LfmError):
    """Too many requests wait already. `retry_after`: seconds until there should be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(LfmError):
    """The server stops and takes nothing more."""


class Lane:
    """The thread of one engine and the requests that wait for it. Used from one event loop."""

    def __init__(self, name: str, waiting: int = WAITING) -> None:
        self.name, self.waiting = name, waiting
        self.jobs = 0  # admitted: the one that has its turn and those that wait
        self.refused = 0  # in all
        self.stopping = False
        self._mean_s = USUAL_S  # of a request, the last ones most
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lane-{name}")

    async def do(self, work: Callable[[], T]) -> T:
        """`work()` when its turn has come. Raises Busy, and what it raises.

        When the caller is cancelled, what has not begun never does.
        """
        async with self.admitted():
            return await self._step(work)

    async def stream(self, begin: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """The items of `begin()`, each computed in the lane. Raises Busy, and what it raises.

        Closing or cancelling closes the iterator after the step that is being computed; only then
        comes the next one's turn. Close it with `contextlib.aclosing`.
        """
        async with self.admitted():
            items = await self._step(begin)
            try:
                while (item := await self._step(lambda: next(items, END))) is not END:
                    yield item  # type: ignore[misc]  # END was the only other
            finally:
                with anyio.CancelScope(shield=True), suppress(Stopping):
                    await self._step(lambda: _close(items))

    def steps(self, items: Iterator[T]) -> Generator[T, None, None]:
        """The same items, each computed in the lane; for other threads than the event loop's.

        Waits for no turn: the steps of several such iterators and of one request alternate.
        """
        try:
            while (item := self.call(lambda: next(items, END))) is not END:
                yield item  # type: ignore[misc]
        finally:
            self.call(lambda: _close(items))

    def call(self, work: Callable[[], T]) -> T:
        """One step in the lane, between those of others; for other threads than the loop's."""
        return self._thread.submit(work).result()

    def close(self) -> None:
        """Wait for the step that is being computed; nothing more is taken."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place in the queue, and the turn when it comes. Raises Busy where no place is left,
        Stopping at the end."""
        if self.stopping:
            raise Stopping("the server is being stopped and takes no more requests")
        if self.jobs > self.waiting:
            self.refused += 1
            wait = max(1, math.ceil(self.jobs * self._mean_s))
            raise Busy(
                f"{self.jobs} requests are at or before {self.name} already, which is the most "
                f"that may wait; try again in {wait} s",
                wait,
            )
        self.jobs += 1
        try:
            async with self._turn:
                start = time.monotonic()
                try:
                    yield
                finally:
                    self._mean_s += (time.monotonic() - start - self._mean_s) / 8
        finally:
            self.jobs -= 1

    async def _step(self, work: Callable[[], T]) -> T:
        try:
            step = self._thread.submit(work)
        except RuntimeError as error:  # the thread is closed
            raise Stopping("the server was stopped before this was done") from error
        return await asyncio.wrap_future(step)


def _close(items: Iterator[Any]) -> None:
    """End a generator; other iterators have nothing to end."""
    close: Callable[[], None] | None = getattr(items, "close", None)
    if close is not None:
        close()
