"""The SQLite file of an index: its connection, its transactions, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lfm2_mm.errors import IndexDamaged, LfmError
from retrieval import schema, seal
from retrieval.storage import CATALOG

BUSY_S = 60  # to wait for another writer of the same file: only `check` is ever in the way
SEAL_WAITS_MS = 500  # for readers that are at work


class Database:
    """One connection."""

    def __init__(
        self, folder: Path, *, create: bool = False, name: str = CATALOG, reads: bool = False
    ) -> None:
        """reads: nothing will be written, so that a full disk is no obstacle."""
        path = folder / name
        self._folder, self._path = folder, path
        if create and not path.exists():
            with self._sound():
                schema.create(path)
        if not path.exists():
            raise IndexDamaged(
                f"{path} is missing: `lfm2-mm repair --index {folder}` mends what can be mended"
            )
        # WAL needs to write beside the file even to read it; on a read-only folder nobody writes.
        self.writable = os.access(folder, os.W_OK)
        self._crowded = False
        with self._sound():
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError as error:
                # No room for what WAL needs beside the file, which is whole without a journal.
                if not (reads and disk_is_full(error)) or self._journal():
                    raise
                self.writable, self._crowded = False, True
                self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        mode = "mode=rw" if self.writable else "mode=ro&immutable=1"
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_S,
        )
        try:
            # The manifest may only name what is durable; FULL makes a commit so.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA schema_version")  # reads: what is in the way is told here
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _journal(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"{self._path}-wal").stat().st_size
        return 0

    def overtaken(self) -> bool:
        """Was this opened on a full disk, and changed since? Then it is to be opened anew."""
        return self._crowded and self._journal() > 0

    def close(self) -> None:
        self._connection.close()

    def seal(self) -> bool:
        """Move the journal into the file and write down the checksums of that; False where a reader
        that is just at work is in the way, so that the next writer does it."""
        if seal.is_sealed(self._folder):
            return True
        if whole := self.checkpoint():
            seal.seal(self._folder)
        return whole

    def checkpoint(self) -> bool:
        """Move the journal into the file; False where a reader is in the way."""
        with self._sound():
            self._connection.execute(f"PRAGMA busy_timeout = {SEAL_WAITS_MS}")
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._connection.execute(f"PRAGMA busy_timeout = {1000 * BUSY_S}")
        return not busy

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[None]:
        """What is read inside belongs to one moment; what is written becomes visible at the end."""
        if write:
            seal.unseal(self._folder)
        with self._sound():
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _all(self, query: str, values: Any = ()) -> list[Any]:
        with self._sound():
            return self._connection.execute(query, values).fetchall()

    def _one(self, query: str, values: Any = ()) -> Any:
        return self._one_row(query, values)[0]

    def _one_row(self, query: str, values: Any = ()) -> tuple[Any, ...]:
        for row in self._all(query, values):
            return tuple(row)
        raise self._damaged("lacks a row that it must have")

    def _damaged(self, what: str) -> IndexDamaged:
        return IndexDamaged(
            f"{self._path}: {what}; `lfm2-mm check` tells what else is damaged, `repair` mends it"
        )

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise self._damaged(str(error)) from error
            if disk_is_full(error):
                raise self._full(error) from error
            raise LfmError(f"{self._path}: {error}; what was published stays") from error

    def _full(self, error: sqlite3.Error) -> LfmError:
        return LfmError(
            f"cannot write to {self._folder}: {error}; what was published stays: free some space "
            "and run it again"
        )


def disk_is_full(error: sqlite3.Error) -> bool:
    """Also where the memory that processes share, a file, cannot be made."""
    code = getattr(error, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or code.startswith("SQLITE_IOERR_SHM")
