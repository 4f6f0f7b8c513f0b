"""The promises of ``gateway.jobs.store.Store``, as tests for any driver: subclass, and say how to open one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.jobs.record import Record, State, new
from gateway.jobs.store import Store, TakenError
from tests.doubles.product import ROOT


def job(number: int, **known: object) -> Record:
    """A fresh record."""
    return new(f"job-{number}", number, 1000.0 + number, client="192.0.2.1", gpu=number % 4, **known)


class StoreContract:
    """What every driver is asked."""

    STATEMENT = ""
    """An expression that makes the driver on ``folder``; it is run in another process, too."""
    IMPORTS = ""

    def make(self, folder: Path) -> Store:
        """A driver that keeps its jobs in ``folder``."""
        names: dict[str, object] = {"folder": folder}
        exec(self.IMPORTS, names)
        return eval(self.STATEMENT, names)

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        """An open store, empty."""
        store = self.make(tmp_path)
        assert await store.open() == []
        yield store
        await store.close()

    async def test_what_was_added_is_there_after_reopening(self, tmp_path: Path):
        """Records come back equal and by order of submission, with their bodies."""
        store = self.make(tmp_path)
        await store.open()
        for number in (2, 1, 3):
            await store.add(job(number, answer={"number": number}), b'{"prompt": %d}' % number)
        await store.close()
        store = self.make(tmp_path)
        assert await store.open() == [job(number, answer={"number": number}) for number in (1, 2, 3)]
        assert await store.body("job-2") == b'{"prompt": 2}'
        await store.close()

    async def test_a_taken_id_changes_nothing(self, store: Store, tmp_path: Path):
        """The second add of an id raises, and the first one's body stays."""
        await store.add(job(1), b"first")
        with pytest.raises(TakenError):
            await store.add(job(1), b"second")
        assert await store.body("job-1") == b"first"

    async def test_a_taken_key_changes_nothing(self, store: Store):
        """An idempotency key belongs to one job; jobs without one do not meet."""
        await store.add(job(1, key="k"), b"")
        with pytest.raises(TakenError):
            await store.add(job(2, key="k"), b"")
        await store.add(job(3), b"")
        await store.add(job(4), b"")
        assert await store.body("job-2") is None

    async def test_one_bad_change_does_not_spoil_its_neighbours(self, store: Store):
        """Of many changes at once only the refused one raises, though they may share a commit."""
        done = await asyncio.gather(
            *(store.add(job(number), b"") for number in (1, 2, 2, 3)), return_exceptions=True
        )
        assert [type(each) for each in done] == [type(None), type(None), TakenError, type(None)]

    async def test_what_was_written_is_read_at_once(self, store: Store):
        """Also what is not durable yet: an entry, a body that is gone with it, a removal."""
        await store.add(job(1), b"body")
        await store.change(job(1), entry=b'{"e": 1}')
        assert await store.entries(["job-1", "job-9"]) == {"job-1": b'{"e": 1}'}
        assert await store.body("job-1") is None
        await store.remove(["job-1", "job-9"])
        assert await store.entries(["job-1"]) == {}
        await store.change(job(2), durable=True)  # an id that is not there; everything before it is durable now
        assert await store.entries(["job-1"]) == {}
        await store.add(job(1), b"again")
        assert await store.body("job-1") == b"again"

    async def test_changes_keep_their_order(self, tmp_path: Path):
        """Of many changes of one job the last stands, whether or not each was waited for."""
        store = self.make(tmp_path)
        await store.open()
        await store.add(job(1), b"")
        for count in range(200):
            await store.change(replace(job(1), attempts=count), durable=count % 50 == 0)
        await store.close()
        store = self.make(tmp_path)
        (record,) = await store.open()
        assert record.attempts == 199
        await store.close()

    async def test_waiting_writes_share_what_durability_costs(self, store: Store):
        """A hundred submissions at once need far fewer commits than a hundred."""
        before = store.stats.commits
        await asyncio.gather(*(store.add(job(number), b"x" * 1000) for number in range(100)))
        assert store.stats.written >= 100
        assert store.stats.commits - before <= 20

    async def test_many_entries_are_found(self, store: Store):
        """More at once than fit one statement of most databases."""
        jobs = [job(number) for number in range(1200)]
        await asyncio.gather(*(store.add(each, b"") for each in jobs))
        for each in jobs:
            await store.change(each, entry=b"%d" % each.seq)
        await store.change(jobs[0], durable=True)
        found = await store.entries([each.id for each in jobs])
        assert found == {each.id: b"%d" % each.seq for each in jobs}

    async def test_what_was_promised_survives_kill_9(self, tmp_path: Path):
        """A writer is killed in the middle: every job whose ``add`` had returned is there, and the store opens."""
        script = f"""
            import asyncio, sys
            from pathlib import Path
            {self.IMPORTS}
            from gateway.jobs.record import new
            folder = Path(sys.argv[1])
            async def writer(store, first):
                for number in range(first, 1_000_000, 8):
                    await store.add(new(f"job-{{number}}", number, 1.0), b"x" * 3000)
                    sys.stdout.write(f"{{number}}\\n")
                    sys.stdout.flush()
            async def main():
                store = {self.STATEMENT}
                await store.open()
                await asyncio.gather(*(writer(store, first) for first in range(8)))
            asyncio.run(main())
        """
        process = subprocess.Popen(  # noqa: ASYNC220 (nothing else runs in this loop)
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        promised = [int(process.stdout.readline()) for _ in range(300)]
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
        # The last line may be cut.
        promised += [int(line) for line in rest.split(b"\n")[:-1]]
        store = self.make(tmp_path)
        kept = {record.seq for record in await store.open()}
        assert set(promised) <= kept
        assert await store.body(f"job-{promised[-1]}") == b"x" * 3000
        await store.close()

    async def test_everything_a_record_holds_comes_back(self, tmp_path: Path):
        """Owner, times, outputs, error: what is stored is what is read."""
        full = new("ü/\u2028", 7, 12.5, port="front", client_id="c", key="a k", digest="d").moved(
            State.FAILED, 13.25, error={"type": "t"}, outputs={"9": {"images": []}}, boot="1-2", crashes=2, hidden=True
        )
        store = self.make(tmp_path)
        await store.open()
        await store.add(full, json.dumps({"ü": 1}).encode())
        await store.close()
        store = self.make(tmp_path)
        assert await store.open() == [full]
        await store.close()
