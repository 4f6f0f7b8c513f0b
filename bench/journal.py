"""``python -m bench.journal``: what the journal costs a submission, and how many commits (fsyncs) many of them share.

Runs the real journal on SQLite in a folder of its own, with a prompt of about 9 KB; measures and prints.
"""

import argparse
import asyncio
import json
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from gateway.jobs.bus import LocalBus
from gateway.jobs.journal import Journal
from gateway.jobs.prompt import read
from gateway.jobs.sqlite import SQLiteStore

PROMPT = {
    str(node): {"class_type": "KSampler", "inputs": {"seed": node, "text": "x" * 60, "model": ["4", 0]}}
    for node in range(60)
}
BODY = json.dumps({"prompt": PROMPT, "client_id": "bench"}).encode()


@dataclass
class Row:
    """One arrival pattern. Times in seconds."""

    name: str
    submissions: int
    seconds: float
    commits: int
    cpu: float
    latencies: list[float]

    def __str__(self) -> str:
        late = sorted(self.latencies)
        return (
            f"{self.name:26} {self.submissions / self.seconds:6.0f} submissions/s {self.commits / self.seconds:6.1f} "
            f"fsync/s {self.cpu / self.submissions * 1e6:6.0f} µs CPU each   "
            f"durable after {late[len(late) // 2] * 1e3:.1f} ms (p95 {late[len(late) * 95 // 100] * 1e3:.1f} ms)"
        )


class Bench:
    """A journal, and what was measured on it."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(SQLiteStore(folder / "jobs.sqlite3"), LocalBus())
        self._latencies: list[float] = []

    async def submit(self) -> None:
        """What the gateway does for one submission, without the backend."""
        begun = time.perf_counter()
        prompt = read(BODY, "application/json", str(uuid.uuid4()))
        assert prompt is not None
        record = self.journal.draft(prompt.id, gpu=0, port="gpu0", client="127.0.0.1", client_id=prompt.client_id)
        await self.journal.add(record, prompt.body)
        self._latencies.append(time.perf_counter() - begun)
        answer = {"prompt_id": prompt.id, "number": 1, "node_errors": {}}
        await self.journal.note(prompt.id, boot="bench", attempts=1, answer=answer)

    async def run(self, name: str, bursts: int, size: int, pause: float) -> Row:
        """``bursts`` times ``size`` submissions at once, the beginnings ``pause`` seconds apart."""
        self._latencies = []
        stats = self.journal.store.stats
        commits, cpu, begun = stats.commits, time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for burst in range(bursts):
                for _ in range(size):
                    tasks.create_task(self.submit(), name="submission")
                await asyncio.sleep(max(0.0, begun + (burst + 1) * pause - time.perf_counter()))
        seconds = time.perf_counter() - begun
        return Row(name, bursts * size, seconds, stats.commits - commits, time.process_time() - cpu, self._latencies)


async def main(folder: Path, scale: float) -> list[Row]:
    """All rows; ``scale`` shortens them."""
    bench = Bench(folder)
    await bench.journal.open()
    rows = [
        await bench.run("100 a second, evenly", max(2, int(500 * scale)), 1, 0.01),
        await bench.run("100 a second, in tens", max(2, int(50 * scale)), 10, 0.1),
        await bench.run("100 a second, all at once", max(1, int(5 * scale)), 100, 1.0),
        await bench.run("2000 at once", 1, max(10, int(2000 * scale)), 0.0),
    ]
    await bench.journal.close()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the journal is made (default: a temporary folder)")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=given) as made:
        for row in asyncio.run(main(Path(made), 1.0)):
            print(row)
