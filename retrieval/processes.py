"""Workers as processes on this machine: each keeps its encoder and takes shard after shard."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from lfm2_mm.errors import LfmError
from retrieval.shards import Died, Settings, Shard, encode, opened


@dataclass
class Worker:
    process: BaseProcess
    line: Connection
    shard: Shard | None = None


class Processes:
    """A `shards.Workers`: at most `count`, each started when there is a shard for it."""

    def __init__(self, count: int, settings: Settings) -> None:
        self._count, self._settings = count, settings
        self._context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self._workers: list[Worker] = []

    def _start(self) -> Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._settings), name="lfm2-mm worker", daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(Worker(process, ours))
        return self._workers[-1]

    def idle(self) -> int:
        return self._count - sum(worker.shard is not None for worker in self._workers)

    def give(self, shard: Shard) -> None:
        worker = next((one for one in self._workers if one.shard is None), None) or self._start()
        worker.shard = shard
        with contextlib.suppress(BrokenPipeError):  # it died while it waited: `wait` will see
            worker.line.send(shard)

    def wait(self) -> tuple[Shard, str | Exception]:
        busy = {worker.line: worker for worker in self._workers if worker.shard}
        (line, *_) = wait(list(busy))
        assert isinstance(line, Connection)
        worker = busy[line]
        shard, result = worker.shard, _received(line)
        assert shard is not None
        worker.shard = None
        if isinstance(result, Died):
            line.close()
            worker.process.join()
            self._workers.remove(worker)
        return shard, result

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()


def _received(line: Connection) -> str | Exception:
    try:
        result: str | Exception = line.recv()
        return result
    except (EOFError, OSError) as error:
        died = Died("a worker process ended")
        died.__cause__ = error
        return died


def _work(line: Connection, settings: Settings) -> None:
    """The life of a worker: Ctrl-C is the parent's to handle, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    encoder = None
    while True:
        try:
            shard: Shard = line.recv()
        except EOFError:
            return
        try:
            encoder = encoder or opened(settings)
            line.send(encode(shard, settings, encoder))
        except LfmError as error:
            line.send(error)
        except Exception as error:  # noqa: BLE001  (the parent raises it)
            line.send(LfmError(f"a worker failed: {type(error).__name__}: {error}"))
