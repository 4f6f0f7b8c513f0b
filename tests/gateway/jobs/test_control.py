"""What a client wants stopped is stopped, also where nobody can write that down."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.jobs.sqlite import SQLiteStore
from tests.doubles.http_client import Got
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until


@contextlib.contextmanager
def unwritable(folder: Path, here: House) -> Iterator[None]:
    """The journal cannot be written while this lasts: somebody else has it."""
    other = sqlite3.connect(folder / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = here.desk.journal.store.stats.errors
    try:
        yield
        assert here.desk.journal.store.stats.errors > before
    finally:
        other.execute("ROLLBACK")
        other.close()


def impatient(file: Path) -> SQLiteStore:
    """A store that soon gives a locked file up."""
    store = SQLiteStore(file)
    store.patience = 0.05
    return store


async def ask(here: House, method: str, target: str, body: Any) -> Got:
    """One request on the front door."""
    async with here.client(None) as client:
        sent = b"" if body is None else json.dumps(body).encode()
        return await client.get(target, "Content-Type: application/json", method=method, body=sent)


@pytest.mark.parametrize(
    ("method", "target", "body", "told"),
    [
        ("POST", "/interrupt", {"prompt_id": "a"}, ("/interrupt", {"prompt_id": "a"})),
        ("POST", "/gpu0/interrupt", {}, ("/interrupt", {})),
        ("POST", "/interrupt", {}, ("/interrupt", {"prompt_id": "a"})),
        ("POST", "/queue", {"delete": ["b"]}, ("/queue", {"delete": ["b"]})),
        ("POST", "/queue", {"clear": True}, ("/queue", {"clear": True})),
        ("DELETE", "/jobs/a", None, ("/interrupt", {"prompt_id": "a"})),
        ("POST", "/api/jobs/a/cancel", {}, ("/interrupt", {"prompt_id": "a"})),
        ("POST", "/api/jobs/cancel", {"job_ids": ["b", "a"]}, ("/interrupt", {"prompt_id": "a"})),
    ],
)
async def test_the_backend_is_told_and_the_client_hears_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, target: str, body: Any, told: tuple[str, Any]
):
    """503 with the reason, and when to try again; with room again, the same request succeeds."""
    monkeypatch.setattr("tests.doubles.jobs_house.SQLiteStore", impatient)
    async with house(tmp_path) as here:
        for job in ("a", "b"):
            got = await here.post("/prompt", {"prompt": {"1": {}}, "prompt_id": job}, gpu=None)
            assert got.status == 200, got.body
        here.comfy.start()
        await until(lambda: here.states() == {"a": "running", "b": "queued"})
        with unwritable(tmp_path, here):
            got = await ask(here, method, target, body)
            assert got.status == 503, got.body
            assert b"could not be written down" in got.body
            assert got.all("Retry-After")
            assert told in here.comfy.told
        assert here.record("b" if told[0] == "/queue" else "a").cancel
        assert (await ask(here, method, target, body)).status in {200, 202}
