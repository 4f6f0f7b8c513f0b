"""The ComfyUI-shaped folder beside this file: taken into this process for a while, or started as a process."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from backend.contract import GPU_HEADER, READY_PREFIX
from backend.lanes import Lane
from backend.overlay import versions
from backend.overlay.state import State

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "doubles" / "comfyui"
NAMES = ("main", "server", "execution", "nodes", "folder_paths", "comfy", "comfy_execution", "cuda_malloc",
         "node_helpers", "comfyui_version", "hook_breaker_ac10a0")
LIMIT = 30.0


def _ours(name: str) -> bool:
    return name.partition(".")[0] in NAMES


@contextmanager
def loaded() -> Iterator[types.ModuleType]:
    """The folder's modules importable for the block; gives its ``main``."""
    before = {name: module for name, module in sys.modules.items() if _ours(name)}
    for name in before:
        del sys.modules[name]
    argv, sys.argv = sys.argv, ["main.py"]
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("main")
    finally:
        sys.path.remove(str(FOLDER))
        sys.argv = argv
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def make_state(lanes: int = 3, serialize: Sequence[str] = ()) -> State:
    """The state of an overlay for the folder's version, on virtual lanes."""
    return State([Lane(index, "cpu") for index in range(lanes)], versions.known()[0], serialize)


def wait_for(what: Callable[[], Any], limit: float = LIMIT) -> Any:
    """The first true value of ``what``; fails when the time is over."""
    deadline = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
    return found


class Started:
    """A backend process; its output is read as it comes."""

    def __init__(self, *arguments: str, comfyui: Path = FOLDER, **env: str) -> None:
        command = [sys.executable, str(ROOT / "backend/bootstrap.py"), "--comfyui", str(comfyui), "--port", "0",
                   "--cpu", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def ready(self) -> dict[str, Any]:
        """What the ready line says; fails with the output when the process ends without one."""
        def look() -> str | None:
            found = [line for line in self.lines if READY_PREFIX in line]
            assert found or self.process.poll() is None, "\n".join(self.lines)
            return found[0] if found else None

        line: str = wait_for(look)
        said: dict[str, Any] = json.loads(line.partition(READY_PREFIX)[2])
        return said

    def ended(self, limit: float = LIMIT) -> int:
        """The exit code, with all output read."""
        code = self.process.wait(limit)
        self._reader.join(limit)
        return code

    def stop(self) -> None:
        """End it, and take its output's pipe away."""
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client:
    """A client on one GPU (``None``: on none): submits, and keeps what it is told."""

    def __init__(self, session: aiohttp.ClientSession, gpu: int | None, client_id: str | None = None) -> None:
        self.session = session
        self.headers = {} if gpu is None else {GPU_HEADER: str(gpu)}
        self.client_id = client_id or uuid.uuid4().hex
        self.events: list[dict[str, Any]] = []
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Client":
        self._ws = await self.session.ws_connect(f"/ws?clientId={self.client_id}", headers=self.headers)
        self._task = asyncio.create_task(self._listen(), name="client")
        await self.until(lambda: self.events)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave as a browser does."""
        assert self._ws is not None
        assert self._task is not None
        await self._ws.close()
        await self._task

    async def _listen(self) -> None:
        assert self._ws is not None
        async for message in self._ws:
            self.events.append(json.loads(message.data))

    async def until(self, what: Callable[[], Any]) -> Any:
        """The first true value of ``what``."""
        deadline = asyncio.get_running_loop().time() + LIMIT
        while not (found := what()):
            assert asyncio.get_running_loop().time() < deadline, f"it did not come to pass: {self.events[-5:]}"
            await asyncio.sleep(0.005)
        return found

    async def submit(self, *nodes: tuple[str, dict[str, Any]], gpu: int | None = None, **extra: Any) -> str:
        """Submit a prompt of these (class, inputs); returns its id."""
        prompt = {str(index): {"class_type": kind, "inputs": inputs} for index, (kind, inputs) in enumerate(nodes)}
        headers = self.headers if gpu is None else {GPU_HEADER: str(gpu)}
        body = {"prompt": prompt, "client_id": self.client_id, **extra}
        async with self.session.post("/prompt", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            found: str = (await response.json())["prompt_id"]
            return found

    async def post(self, path: str, body: Any = None) -> None:
        """Send a command, which must be accepted."""
        async with self.session.post(path, json=body, headers=self.headers) as response:
            assert response.status == 200, await response.text()

    async def get(self, path: str) -> Any:
        """A JSON answer."""
        async with self.session.get(path, headers=self.headers) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def entry(self, prompt_id: str) -> Any:
        """The job's history entry, once there is one."""
        deadline = asyncio.get_running_loop().time() + LIMIT
        while prompt_id not in (found := await self.get(f"/history/{prompt_id}")):
            assert asyncio.get_running_loop().time() < deadline, "the job does not end"
            await asyncio.sleep(0.01)
        return found[prompt_id]

    def heard(self, prompt_id: str) -> list[str]:
        """The kinds of events of one job, in order."""
        return [event["type"] for event in self.events if event["data"].get("prompt_id") == prompt_id]
