"""One thread an engine: turns, refusals, and work that really stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing

import pytest

from apps.lanes import Busy, Lane


class Counter:
    """An iterator to watch: which threads stepped it, how far it came, whether it was closed."""

    def __init__(self, length: int) -> None:
        self.length, self.made, self.closed = length, 0, False
        self.threads: set[str] = set()

    def items(self) -> Iterator[int]:
        try:
            while self.made < self.length:
                self.threads.add(threading.current_thread().name)
                self.made += 1
                yield self.made
        finally:
            self.closed = True


def test_a_stream_runs_in_the_lane_and_gives_all() -> None:
    async def run() -> list[int]:
        with closing(Lane("x")) as lane:
            return [item async for item in lane.stream(counter.items)]

    counter = Counter(5)
    assert asyncio.run(run()) == [1, 2, 3, 4, 5]
    assert counter.closed and all(name.startswith("lane-x") for name in counter.threads)


def test_leaving_early_closes_the_work_before_the_next_turn() -> None:
    first, second = Counter(1_000_000), Counter(1)

    async def run() -> int:
        with closing(Lane("x")) as lane:
            async with aclosing(lane.stream(first.items)) as items:
                async for item in items:
                    if item == 3:
                        break
            assert first.closed
            return len([item async for item in lane.stream(second.items)])

    assert asyncio.run(run()) == 1
    assert first.made == 3


@pytest.mark.parametrize("waiting", [0, 2])
def test_a_cancelled_reader_stops_the_work_and_gives_its_place_back(waiting: int) -> None:
    counter = Counter(1_000_000_000)

    async def read(lane: Lane) -> None:
        async with aclosing(lane.stream(counter.items)) as items:
            async for _ in items:
                await asyncio.sleep(0)

    async def run() -> None:
        with closing(Lane("x", waiting)) as lane:
            reading = asyncio.create_task(read(lane))
            while counter.made < 10:
                await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert counter.closed and lane.jobs == 0
            assert await lane.do(lambda: 7) == 7

    asyncio.run(run())


def test_more_than_may_wait_are_refused_with_a_time() -> None:
    go = threading.Event()

    async def run() -> None:
        with closing(Lane("x", waiting=2)) as lane:
            taken = [asyncio.create_task(lane.do(go.wait)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="3 requests") as refused:
                await lane.do(lambda: None)
            assert refused.value.retry_after >= 1 and lane.refused == 1
            go.set()
            assert await asyncio.gather(*taken) == [True] * 3
            assert await lane.do(lambda: 1) == 1

    asyncio.run(run())


def test_what_waited_and_was_cancelled_never_begins() -> None:
    go, begun = threading.Event(), []

    async def run() -> None:
        with closing(Lane("x")) as lane:
            first = asyncio.create_task(lane.do(go.wait))
            await asyncio.sleep(0)
            second = asyncio.create_task(lane.do(lambda: begun.append(1)))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            go.set()
            await first
            assert lane.jobs == 0

    asyncio.run(run())
    assert begun == []


def test_a_live_conversation_steps_beside_a_request() -> None:
    """Neither waits for the other to end, and no two steps overlap."""
    request, live = Counter(1_000_000_000), Counter(50)

    async def run() -> None:
        with closing(Lane("x")) as lane:
            async with aclosing(lane.stream(request.items)) as items:
                await anext(items)
                heard = asyncio.create_task(asyncio.to_thread(list, lane.steps(live.items())))
                while not heard.done():
                    await anext(items)
                assert await heard == list(range(1, 51))
        assert request.threads == live.threads and len(live.threads) == 1

    asyncio.run(run())
    assert live.closed and request.closed


def test_what_the_work_raises_reaches_the_caller_and_frees_the_lane() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    async def run() -> None:
        with closing(Lane("x")) as lane:
            with pytest.raises(ValueError, match="two"):
                async for _ in lane.stream(broken):
                    pass
            assert lane.jobs == 0 and await lane.do(lambda: 3) == 3

    asyncio.run(run())
