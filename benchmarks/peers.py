"""An engine in a process of its own, which waits until it is asked. Knows pipes, no arithmetic.

A peer that crashes takes itself along and nothing else; while one is measured, the others sleep.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PATIENCE = 1200  # seconds for one answer; a busy machine is slow, a hung peer is slower


class PeerDied(Exception):
    """Why a peer gives no more answers."""


class Peer:
    """`open_engine(*arguments)` run in a new process; what it returns answers each `ask`."""

    def __init__(
        self, open_engine: Callable[..., Any], *arguments: Any, patience: float = PATIENCE
    ) -> None:
        self.patience = patience
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, open_engine, arguments), daemon=True
        )
        self.process.start()
        theirs.close()  # else its end would stay open here after it died

    def answer(self) -> Any:
        """The next thing it says. Raises PeerDied."""
        try:
            if not self.pipe.poll(self.patience):
                self.process.kill()
                raise PeerDied(f"no answer in {self.patience:.0f} seconds: stopped")
            return self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise PeerDied(self.cause()) from error

    def ask(self, *task: Any) -> Any:
        """Send a task and wait for the answer. Raises PeerDied."""
        try:
            self.pipe.send(task)
        except ConnectionError as error:
            raise PeerDied(self.cause()) from error
        return self.answer()

    def cause(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"died of {signal.Signals(-code).name}"
        return f"ended with exit code {code}; its own words are on stderr"

    def close(self) -> None:
        self.process.terminate()
        self.process.join(10)


def serve(pipe: Connection, open_engine: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What the process runs: say the engine's note once it is open, then answer until told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # native libraries print to stdout, which is for the table alone
    measure, note = open_engine(*arguments)
    pipe.send(note)
    while True:
        pipe.send(measure(*pipe.recv()))
