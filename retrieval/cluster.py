"""Workers as actors of a Ray cluster. Needs the extra `ray`.

Ray only says who does what: paths go out, names come back, and that every shard is there exactly
once follows from `shards`. The folder of shards and the files must be the same on every machine.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from typing import Any

from lfm2_mm.errors import LfmError, MissingExtra
from retrieval.shards import Died, Settings, Shard, encode, opened

STORE_BYTES = 128 << 20  # nothing but paths and names travels
LOCAL = "local"


def connect(address: str) -> None:
    """Join the cluster at `address`; "local" starts one on this machine."""
    if find_spec("ray") is None:
        raise MissingExtra("--ray needs ray: pip install 'lfm2-mm[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        if sys.platform == "linux":
            # Nothing of it can be reached from elsewhere. Ray turns 127.0.0.1 into the machine's
            # outer address; elsewhere than on Linux it stays on the loopback by itself.
            options["_node_ip_address"] = "127.0.0.2"
    try:
        ray.init(
            **options, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LfmError(
            f"no Ray cluster at {address}: {error}; give what `ray start --head` told, or `local`"
        ) from error


def leave() -> None:
    """End what `connect` began."""
    import ray

    ray.shutdown()


def processors() -> int:
    """Of the whole cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Actors:
    """A `shards.Workers`, once `connect` was called; each starts when there is a shard for it."""

    def __init__(self, count: int, settings: Settings) -> None:
        import ray

        self._ray, self._count, self._settings = ray, count, settings
        self._waiting: list[Any] = []
        self._running: dict[Any, tuple[Any, Shard]] = {}  # what will come, of whom, for which

    def _start(self) -> Any:
        actor = self._ray.remote(Encoding)
        threads = self._settings.threads
        return actor.options(num_cpus=threads, max_restarts=0).remote(self._settings)

    def idle(self) -> int:
        return self._count - len(self._running)

    def give(self, shard: Shard) -> None:
        actor = self._waiting.pop(0) if self._waiting else self._start()
        self._running[actor.encode.remote(shard)] = (actor, shard)

    def wait(self) -> tuple[Shard, str | Exception]:
        (ready,), _ = self._ray.wait(list(self._running), num_returns=1)
        actor, shard = self._running.pop(ready)
        try:
            result: str | Exception = self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            died = Died("an actor ended")
            died.__cause__ = error
            return shard, died
        except self._ray.exceptions.RayTaskError as error:
            result = error.cause if isinstance(error.cause, Exception) else LfmError(str(error))
        self._waiting.append(actor)
        return shard, result

    def stop(self) -> None:
        for actor in [*self._waiting, *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)


class Encoding:
    """The actor: keeps its encoder and takes shard after shard."""

    def __init__(self, settings: Settings) -> None:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        self._settings = settings
        self._encoder: Any = None

    def encode(self, shard: Shard) -> str:
        self._encoder = self._encoder or opened(self._settings)
        return encode(shard, self._settings, self._encoder)
