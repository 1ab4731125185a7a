"""Many clients at once, as the load test and the benchmark use them: what came, and how fast."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

Ask = Callable[[httpx.Client], httpx.Response]


@dataclass
class Seen:
    """What clients saw, by kind of request."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of those that were answered
    lost: list[str] = field(default_factory=list)  # connections that broke

    def add(self, kind: str, status: int, seconds: float) -> None:
        self.statuses.setdefault(kind, Counter())[status] += 1
        if status == 200:
            self.seconds.setdefault(kind, []).append(seconds)


def rush(
    address: str, asks: dict[str, Ask], *, clients: int, seconds: float, pause: float = 1.0
) -> Seen:
    """`clients` at once ask at random for so long; one sent away waits `pause`, or as it is told.

    A client that is told to wait longer than `pause` waits only that: it presses on.
    """
    seen, lock, end = Seen(), threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=address, timeout=120) as http:
            while time.monotonic() < end:
                kind = chance.choice(list(asks))
                start = time.monotonic()
                try:
                    status = asks[kind](http).status_code
                except httpx.HTTPError as error:
                    with lock:
                        seen.lost.append(f"{kind}: {type(error).__name__}")
                    continue
                with lock:
                    seen.add(kind, status, time.monotonic() - start)
                if status == 429:
                    time.sleep(chance.uniform(0, pause))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen
