"""The store on SQLite: one file, one writer thread, one fsync for all that came in while the last one was under way.

Owns the database and its two connections. WAL with ``synchronous=FULL``: a commit is on the disk when it returns, and
readers never wait for it. Must never know what the jobs are for.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.jobs.record import Record, from_json
from gateway.jobs.store import StoreError, StoreStats, TakenError

log = logging.getLogger("gateway.jobs")

VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, key TEXT UNIQUE,
        record TEXT NOT NULL, body BLOB, entry BLOB)""",
    "CREATE INDEX IF NOT EXISTS jobs_by_seq ON jobs (seq)",
    f"PRAGMA user_version = {VERSION}",
)

LAZY: Final = 0.1
"""Seconds that a change which nobody waits for may wait for others to share its commit."""
_MOST: Final = 500
"""Changes in one commit; more than that would make the first wait for the last."""


@dataclass
class _Write:
    """One change on its way to the disk."""

    statements: Sequence[tuple[str, Sequence[Any]]]
    done: "asyncio.Future[None] | None"
    """Told when it is durable; ``None``: nobody waits."""
    failed: Exception | None = None
    begun: float = field(default_factory=time.perf_counter)


class SQLiteStore:
    """``Store`` on one file, which is made with its folder when it is not there."""

    def __init__(self, file: Path) -> None:
        self.stats = StoreStats()
        self.patience = 5.0
        """Seconds to wait for another process that has the file locked."""
        self._file = file
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop
        self._reader: sqlite3.Connection
        self._reads = ThreadPoolExecutor(1, "journal-read")
        self._thread = threading.Thread(target=self._write_all, name="journal-write", daemon=True)
        self._pending = 0
        """Changes handed to the writer and not answered yet."""
        self._unseen: dict[str, tuple[bytes | None, bytes | None]] = {}
        """Body and entry of jobs whose change is not committed yet: a read must see them."""

    async def open(self) -> list[Record]:
        """Open or make the file; see ``Store``."""
        self._loop = asyncio.get_running_loop()
        try:
            return await self._loop.run_in_executor(self._reads, self._begin)
        except (OSError, sqlite3.Error, ValueError) as error:
            self._reads.shutdown()
            text = f"the journal {self._file} cannot be opened: {error}"
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                folder = self._file.parent
                text += f"; its jobs cannot be read: move {folder} away, or name another folder as [jobs] journal"
            raise StoreError(text) from error

    async def close(self) -> None:
        """See ``Store``."""
        self._writes.put(None)
        await self._loop.run_in_executor(self._reads, self._thread.join)
        await self._loop.run_in_executor(self._reads, self._reader.close)
        self._reads.shutdown()

    async def add(self, record: Record, body: bytes) -> None:
        """See ``Store``."""
        statement = "INSERT INTO jobs (id, seq, key, record, body) VALUES (?, ?, ?, ?, ?)"
        await self._durably([(statement, (record.id, record.seq, record.key or None, record.to_json(), body))])

    async def change(self, record: Record, *, entry: bytes | None = None, durable: bool = False) -> None:
        """See ``Store``."""
        statements: list[tuple[str, Sequence[Any]]] = [
            ("UPDATE jobs SET record = ? WHERE id = ?", (record.to_json(), record.id))
        ]
        if entry is not None:
            statements.append(("UPDATE jobs SET entry = ?, body = NULL WHERE id = ?", (entry, record.id)))
            self._unseen[record.id] = (None, entry)
        if durable:
            await self._durably(statements)
        else:
            self._lazily(statements)

    async def remove(self, ids: Sequence[str]) -> None:
        """See ``Store``."""
        for job in ids:
            self._unseen[job] = (None, None)
        self._lazily([("DELETE FROM jobs WHERE id = ?", (job,)) for job in ids])

    async def body(self, job: str) -> bytes | None:
        """See ``Store``."""
        if job in self._unseen:
            return self._unseen[job][0]
        rows = await self._read("SELECT body FROM jobs WHERE id = ?", (job,))
        return rows[0][0] if rows else None

    async def entries(self, ids: Sequence[str]) -> dict[str, bytes]:
        """See ``Store``."""
        found: dict[str, bytes] = {}
        for job in ids:
            if job in self._unseen and (entry := self._unseen[job][1]) is not None:
                found[job] = entry
        left = [job for job in ids if job not in self._unseen]
        for at in range(0, len(left), _MOST):
            some = left[at : at + _MOST]
            marks = ",".join("?" * len(some))
            # The marks are question marks and nothing else.
            rows = await self._read(
                f"SELECT id, entry FROM jobs WHERE entry IS NOT NULL AND id IN ({marks})",  # noqa: S608
                some,
            )
            found.update(rows)
        return found

    # On the event loop

    async def _durably(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        done = self._loop.create_future()
        self._put(_Write(statements, done))
        # A caller that gives up does not take the change back.
        await asyncio.shield(done)

    def _lazily(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        self._put(_Write(statements, None))

    def _put(self, write: _Write) -> None:
        self._pending += 1
        self._writes.put(write)

    async def _read(self, statement: str, values: Sequence[Any]) -> list[Any]:
        def read() -> list[Any]:
            return self._reader.execute(statement, values).fetchall()

        try:
            return await self._loop.run_in_executor(self._reads, read)
        except sqlite3.Error as error:
            self.stats.errors += 1
            raise StoreError(f"the journal cannot be read: {error}") from error

    def _committed(self, writes: Sequence[_Write], broken: Exception | None, seconds: float) -> None:
        self.stats.commits += 1
        self.stats.seconds += seconds
        self._pending -= len(writes)
        for write in writes:
            error = write.failed or (StoreError(f"the journal cannot be written: {broken}") if broken else None)
            self.stats.written += error is None
            self.stats.errors += isinstance(error, StoreError)
            if write.done is not None and not write.done.cancelled():
                if error is None:
                    write.done.set_result(None)
                else:
                    write.done.set_exception(error)
        if not self._pending:
            self._unseen.clear()

    # In the reader's thread

    def _begin(self) -> list[Record]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # Prompts may hold what is nobody else's business.
        os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        self._reader = self._connect()
        (version,) = self._reader.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise ValueError(f"it was written by a later version ({version}, this one knows {VERSION})")
        for statement in _SCHEMA:
            self._reader.execute(statement)
        rows = self._reader.execute("SELECT record FROM jobs ORDER BY seq").fetchall()
        self._thread.start()
        return [from_json(text) for (text,) in rows]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=self.patience, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    # In the writer's thread

    def _write_all(self) -> None:
        try:
            connection = self._connect()
        except sqlite3.Error as error:
            self._tell([], error, 0.0)
            return
        going, owed = True, list[_Write]()
        while going:
            writes, going = self._gather()
            owed = self._commit(connection, [*owed, *writes])
        connection.close()

    def _gather(self) -> tuple[list[_Write], bool]:
        """What goes into the next commit, and whether there is to be another."""
        first = self._writes.get()
        if first is None:
            return [], False
        writes = [first]
        until = first.begun + LAZY
        urgent = first.done is not None
        while len(writes) < _MOST:
            try:
                patience = 0.0 if urgent else max(0.0, until - time.perf_counter())
                more = self._writes.get(timeout=patience) if patience else self._writes.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return writes, False
            writes.append(more)
            urgent = urgent or more.done is not None
        return writes, True

    def _commit(self, connection: sqlite3.Connection, writes: list[_Write]) -> list[_Write]:
        """Make them durable; gives back those that must be in the next commit because this one failed."""
        broken: Exception | None = None
        owed: list[_Write] = []
        begun = time.perf_counter()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                write.failed = _apply(connection, write.statements)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            broken = error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            log.error("the journal cannot be written: %s", error)  # noqa: TRY400 (the line says it all)
            # Nobody waits for these, so nobody would try again; the others are told.
            owed = [write for write in writes if write.done is None]
            writes = [write for write in writes if write.done is not None]
        self._tell(writes, broken, time.perf_counter() - begun)
        return owed

    def _tell(self, writes: Sequence[_Write], broken: Exception | None, seconds: float) -> None:
        tell: Callable[..., object] = self._loop.call_soon_threadsafe
        tell(self._committed, writes, broken, seconds)


def _apply(connection: sqlite3.Connection, statements: Iterable[tuple[str, Sequence[Any]]]) -> Exception | None:
    """Perform one change; what it is refused for, when it is the change's own fault."""
    try:
        for statement, values in statements:
            connection.execute(statement, values)
    except sqlite3.IntegrityError as error:
        return TakenError(str(error))
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError, ValueError, OverflowError) as error:
        return StoreError(f"the journal cannot hold this: {error}")
    return None
