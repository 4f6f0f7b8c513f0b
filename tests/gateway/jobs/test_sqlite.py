"""The SQLite driver holds the store's promises, and some of its own."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from gateway.jobs.sqlite import SQLiteStore
from gateway.jobs.store import StoreError
from tests.gateway.jobs.store_contract import StoreContract, job


class TestSQLite(StoreContract):
    """Every promise of the interface."""

    IMPORTS = "from gateway.jobs.sqlite import SQLiteStore"
    STATEMENT = "SQLiteStore(folder / 'jobs.sqlite3')"


async def test_the_file_is_safe_and_private(tmp_path: Path):
    """WAL, every commit synced, and nobody else may read prompts."""
    file = tmp_path / "sub" / "jobs.sqlite3"
    store = SQLiteStore(file)
    await store.open()
    assert file.stat().st_mode & 0o077 == 0
    assert store._reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._reader.execute("PRAGMA synchronous").fetchone() == (2,)
    await store.close()


async def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path):
    """It is refused with a line that says why."""
    file = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="later version"):
        await SQLiteStore(file).open()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    """With its name and what to do, and unchanged."""
    file = tmp_path / "jobs.sqlite3"
    file.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match=r"jobs\.sqlite3.*; its jobs cannot be read: move .* away"):
        await SQLiteStore(file).open()
    assert file.read_bytes().startswith(b"not a database")


async def test_a_write_that_fails_is_told_and_the_next_succeeds(tmp_path: Path):
    """While somebody else locks the file submissions are refused; what nobody waited for is made up for later."""
    file = tmp_path / "jobs.sqlite3"
    store = SQLiteStore(file)
    store.patience = 0.05
    await store.open()
    await store.add(job(1), b"")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await store.change(job(1), entry=b"made up for")
    with pytest.raises(StoreError):
        await store.add(job(2), b"")
    assert store.stats.errors >= 1
    other.execute("ROLLBACK")
    other.close()
    await store.add(job(3), b"")
    await store.close()
    store = SQLiteStore(file)
    assert [record.seq for record in await store.open()] == [1, 3]
    assert await store.entries(["job-1"]) == {"job-1": b"made up for"}
    await store.close()


async def test_readers_do_not_wait_for_writers(tmp_path: Path):
    """A body is read while a write hangs at a lock."""
    file = tmp_path / "jobs.sqlite3"
    store = SQLiteStore(file)
    await store.open()
    await store.add(job(1), b"there")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.TaskGroup() as tasks:
        hanging = tasks.create_task(store.add(job(2), b""), name="hanging")
        assert await store.body("job-1") == b"there"
        assert not hanging.done()
        other.execute("ROLLBACK")
        other.close()
    await store.close()
