"""Many files encoded by many workers: cut into shards, each a job that may be run again, committed
once. Knows no processes and no cluster; those are `Workers`.

A shard is a range of the sorted files, cut the same way however many workers there are, so the
result is the same byte for byte. A worker that dies costs its shard's unfinished part: another one
goes on with it (`retrieval/batches.py` tells how).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lfm2_mm.errors import LfmError
from retrieval.batches import segment_name
from retrieval.update import File

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

SHARD_FILES = 1024
SHARD_BYTES = 32 << 20  # of files: minutes of work that a dead worker may cost
ATTEMPTS = 3  # of one shard, by workers that died under it


@dataclass(frozen=True)
class Shard:
    """One job: some files, and the folder that holds them encoded."""

    paths: tuple[str, ...]
    bytes: int
    name: str  # by the hash of files, model and settings; see `batches.segment_name`


@dataclass(frozen=True)
class Settings:
    """What every worker is told once. Plain values: it travels to other machines."""

    into: str
    model: Any  # a name, a path, or an encoder
    codec: str | None = None
    pool: int | None = None
    meta: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    threads: int = 1  # the same for any number of workers: sums do not depend on it


class Died(Exception):
    """The worker ended in the middle of its shard."""


class Workers(Protocol):
    """Some workers, each with at most one shard."""

    def idle(self) -> int:
        """How many could take a shard; what died is replaced."""
        ...

    def give(self, shard: Shard) -> None:
        """Let one that waits begin."""
        ...

    def wait(self) -> tuple[Shard, str | Exception]:
        """Until one is done: its shard, and the folder's name, or Died, or what went wrong."""
        ...

    def stop(self) -> None:
        """End all of them, whatever they do."""
        ...


def cut(files: Sequence[File], settings: Settings) -> Iterator[Shard]:
    """The files in shards, from the first on; reads every file once for its hash."""
    group: list[File] = []
    for file in files:
        size = sum(max(0, one.size) for one in group)
        if group and (len(group) >= SHARD_FILES or size + max(0, file.size) > SHARD_BYTES):
            yield _shard(group, settings)
            group = []
        group.append(file)
    if group:
        yield _shard(group, settings)


def _shard(group: Sequence[File], settings: Settings) -> Shard:
    paths = tuple(str(file.path) for file in group)
    name = segment_name(
        group, settings.model, codec=settings.codec, pool=settings.pool,
        meta=dict(settings.meta), offline=settings.offline,
    )  # fmt: skip
    return Shard(paths, sum(max(0, file.size) for file in group), name)


def encode(shard: Shard, settings: Settings, encoder: Encoder | str) -> str:
    """What a worker does with one shard; the name of the folder."""
    try:
        return _encoded(shard, settings, encoder)
    except LfmError as error:  # it travels: one that is made of more than its message would not
        plain = type(error).__init__ is LfmError.__init__
        raise (error if plain else LfmError(str(error))) from None


def _encoded(shard: Shard, settings: Settings, encoder: Encoder | str) -> str:
    from retrieval.batches import encode_segment

    batch = encode_segment(
        shard.paths, settings.into, model=encoder, codec=settings.codec, pool=settings.pool,
        meta=dict(settings.meta), device=settings.device, dtype=settings.dtype,
        offline=settings.offline, empty=True,
    )  # fmt: skip
    return batch.folder.name


def opened(settings: Settings) -> Encoder:
    """The encoder of a worker, with its share of the processor."""
    if not isinstance(settings.model, str):
        made: Encoder = settings.model
        return made
    import torch

    from retrieval.encoder import open_encoder

    torch.set_num_threads(settings.threads)
    return open_encoder(
        settings.model, device=settings.device, dtype=settings.dtype, offline=settings.offline
    )


def run(
    shards: Sequence[Shard],
    settings: Settings,
    workers: Callable[[], Workers],
    tell: Callable[[int, str], None] = lambda done, what: None,
) -> list[Path]:
    """Encode all shards that are not there yet; their folders, in order.

    workers: starts them, if there is anything to do. tell: bytes done, and the folder of the shard.
    Raises what a shard raised, LfmError for one under which ATTEMPTS workers died; what is finished
    stays, and the next run goes on.
    """
    into = Path(settings.into)
    todo = [shard for shard in reversed(shards) if not (into / shard.name).exists()]
    done = sum(shard.bytes for shard in shards) - sum(shard.bytes for shard in todo)
    if todo:
        pool = workers()
        try:
            for shard in _finished(todo, pool):
                done += shard.bytes
                tell(done, shard.name)
        finally:
            pool.stop()
    return [into / shard.name for shard in shards]


def _finished(todo: list[Shard], pool: Workers) -> Iterator[Shard]:
    deaths: dict[str, int] = {}
    running = 0
    while todo or running:
        while todo and pool.idle():
            pool.give(todo.pop())
            running += 1
        shard, result = pool.wait()
        running -= 1
        if isinstance(result, Died):
            deaths[shard.name] = deaths.get(shard.name, 0) + 1
            if deaths[shard.name] == ATTEMPTS:
                raise LfmError(
                    f"{ATTEMPTS} workers died while they encoded {shard.paths[0]} to "
                    f"{shard.paths[-1]}: is there enough memory? What is finished stays; run it "
                    "again with fewer workers"
                ) from result
            todo.append(shard)
        elif isinstance(result, Exception):
            raise result
        elif result != shard.name:
            raise LfmError(
                f"a worker made {result} where {shard.name} was asked: it has other files, another "
                "model or another version than this machine"
            )
        else:
            yield shard


def remove(folders: Sequence[Path]) -> None:
    """Shards that were committed; and their place, if nothing else is in it.

    What an earlier job left whose files have changed since stays: it may be somebody's.
    """
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError, IndexError):
        folders[0].parent.rmdir()
