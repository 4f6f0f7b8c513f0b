"""The backend as a process with its lanes on GPUs: the same bytes on every lane, alone and all at once."""

import hashlib
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.backend_process import BackendProcess
from tests.doubles.prompts import painting
from tests.gpu.cards import lanes_on

LIMIT = 240.0
"""Seconds that one job may take."""


class Backend:
    """The embedded engine on these devices, spoken to directly."""

    def __init__(self, folder: Path, devices: list[str]) -> None:
        self.devices = devices
        self.process = BackendProcess(folder, ["--devices", ",".join(devices), "--gpus", str(len(devices))])
        self.url = self.process.start().url

    def ask(self, path: str, lane: int, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-TARGET-GPU": str(lane), "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def submit(self, lane: int, seed: int) -> str:
        prompt = painting(seed, "gpu", steps=12)
        return str(json.loads(self.ask("/prompt", lane, {"prompt": prompt}))["prompt_id"])

    def picture(self, lane: int, job: str) -> str:
        """Waits for the job; the hash of its picture's bytes."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            entry = json.loads(self.ask(f"/history/{job}", lane)).get(job)
            if entry is not None:
                assert entry["status"]["status_str"] == "success", entry["status"]
                image = next(iter(entry["outputs"].values()))["images"][0]
                query = f"/view?filename={image['filename']}&type={image['type']}&subfolder={image['subfolder']}"
                return hashlib.sha256(self.ask(query, lane)).hexdigest()
            time.sleep(0.05)
        raise TimeoutError(f"job {job} took longer than {LIMIT:.0f} s")


@pytest.fixture
def backend(kind: str, one_card: bool, tmp_path: Path) -> Iterator[Backend]:
    """Four lanes on a GPU; two for the dry run."""
    made = Backend(tmp_path, lanes_on(kind, 4 if kind == "cuda" else 2, one_card=one_card))
    yield made
    made.process.end()


@pytest.mark.timeout(600)
def test_a_seed_is_a_picture_on_every_lane(backend: Backend, kind: str) -> None:
    """Three seeds on each lane alone, then on all at once: one picture for each seed; the lanes tell h/T."""
    lanes = range(len(backend.devices))
    alone = [[backend.picture(lane, backend.submit(lane, seed)) for seed in range(3)] for lane in lanes]
    jobs = [(lane, seed, backend.submit(lane, 10 + seed)) for seed in range(3) for lane in lanes]
    among = {(lane, seed): backend.picture(lane, job) for lane, seed, job in jobs}
    assert all(pictures == alone[0] for pictures in alone)
    assert all(picture == among[0, seed] for (_, seed), picture in among.items())
    said = json.loads(backend.ask("/debug/queues", 0))["issuing"]
    print(f"\n{backend.devices}: {said}")
    assert all(lane["calls"] > 0 for lane in said["lanes"])
    assert (said["verdict"] == "cpu") is (kind == "cpu")
