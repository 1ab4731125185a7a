"""Replies that come piece by piece, and work that stops when nobody waits for it any longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

import anyio
from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lfm2_mm.errors import LfmError
from lfm2_mm.types import Done, Event, Progress, TextDelta, Usage

T = TypeVar("T")
KEEP = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # no proxy may hold pieces back


class ClientGone(LfmError):
    """Whoever asked has left."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves: then ClientGone.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client has left")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """A body that is made while it is sent. `source` is closed at the end, however it ends."""

    def __init__(
        self,
        body: AsyncIterable[bytes],
        source: AsyncGenerator[T, None],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(body, media_type=media_type, headers={**KEEP, **(headers or {})})
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


async def without_progress(
    events: AsyncGenerator[Event, None],
) -> AsyncGenerator[Event, None]:
    """What came of the work; how far it is, is left out. Closing it closes `events`."""
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Progress):
                yield event


def until_stop(
    events: Iterator[Event], stops: Sequence[str], prompt_tokens: int
) -> Iterator[Event]:
    """The same events up to the first of `stops` in the text, which is not given out itself.

    What may be the beginning of one is held back until it is certain.
    """
    held, said = "", 0
    for event in events:
        if isinstance(event, TextDelta):
            said += 1
            held += event.text
            found = [place for stop in stops if (place := held.find(stop)) >= 0]
            if found:
                if held[: min(found)]:
                    yield TextDelta(held[: min(found)])
                close = getattr(events, "close", None)
                if close is not None:
                    close()
                yield Done("stop", Usage(prompt_tokens, said))
                return
            keep = _beginning(held, stops)
            if sure := held[: len(held) - keep]:
                yield replace(event, text=sure)
            held = held[len(held) - keep :]
        else:
            if isinstance(event, Done) and held:
                yield TextDelta(held)
            yield event


def _beginning(text: str, stops: Sequence[str]) -> int:
    """How many last characters of `text` begin one of `stops`."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
