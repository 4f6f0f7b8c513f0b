"""The product as its users have it: ``comfy-gateway up`` as a process with a configuration file of its own."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import pick_ports, pick_run
from tests.doubles.wait import alive, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent

GENEROUS = """
[rate.submit]
rate = 10000
burst = 10000
[rate.read]
rate = 10000
burst = 10000
[rate.control]
rate = 10000
burst = 10000
"""
"""Limits that no test meets by accident."""


@dataclass
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Product:
    """One start of ``comfy-gateway up`` in ``folder``. ``ports``: the front door's, then each GPU's."""

    folder: Path
    gpus: int = 4
    settings: str = ""
    arguments: tuple[str, ...] = ()
    drain: float = 5.0
    behind: str = ""
    """Url of a backend that somebody else runs; empty: this one starts its own."""
    env: Mapping[str, str] = field(default_factory=dict)
    mode: str = "single"
    whole: bool = False
    """Whether ``settings`` name the backends, too."""

    def __post_init__(self) -> None:
        self.ports = pick_ports(self.gpus + 1)
        self.backend_port = pick_run(1 if self.mode == "single" else self.gpus, self.ports)
        self.stdout = self.folder / "stdout"
        self.stderr = self.folder / "stderr"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Product":
        """Start it; returns at once."""
        config = self.folder / "config.toml"
        config.write_text(self.config(), encoding="utf-8")
        command = [sys.executable, "-m", "gateway", "up", "--config", str(config), *self.arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COMFY_TESTING_NODES": "1", **self.env}
        for name in ("COMFYUI_DIR", "COMFY_NUM_GPUS", "COMFY_MULTI_GPU_SCHED"):
            env.pop(name, None)
        env.update(self.env)
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=self.folder)
        return self

    def config(self) -> str:
        front, *gpus = self.ports
        listen = f"[listen]\nfront_port = {front}\ngpu_ports = {gpus}\n"
        if self.whole:
            return f"{listen}[timeouts]\ndrain = {self.drain}\n{self.settings}"
        return listen + (
            f'[backend]\nurl = "{self.url}"\nstart = {"false" if self.behind else "true"}\n'
            f'mode = "{self.mode}"\nrestart_min = 0.1\n[timeouts]\ndrain = {self.drain}\n{self.settings}'
        )

    @property
    def url(self) -> str:
        """Where its backend is."""
        return self.behind or f"http://127.0.0.1:{self.backend_port}"

    def ready(self, seconds: float = 100.0) -> "Product":
        """Wait until it says that it is ready; fails with its output when it ends instead."""

        def is_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"up ended with {self.process.returncode}:\n{self.log()}")
            return " is ready" in self.said()

        try:
            wait_until(is_ready, seconds, "ready")
        except TimeoutError:
            raise AssertionError(f"not ready after {seconds:g} s:\n{self.log()}") from None
        return self

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "not started"
        return self._process

    def said(self) -> str:
        """What it printed for the user."""
        return self.stdout.read_text(encoding="utf-8", errors="replace")

    def log(self) -> str:
        """The log of both processes."""
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def backend_pid(self) -> int:
        """The newest backend's process id."""
        return int(re.findall(r"backend (?:started|found at work), process (\d+)", self.log())[-1])

    def backend_pids(self) -> list[int]:
        """The process ids of all backends, as they are noted."""
        folder = self.folder / "data/jobs"
        names = ["backend.json", *(f"backend{index}.json" for index in range(1, self.gpus))]
        return [json.loads((folder / name).read_text())["pid"] for name in names if (folder / name).exists()]

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def stop(self, seconds: float = 30.0) -> int:
        """Ctrl-C, and the exit code; whatever is left after ``seconds`` is killed."""
        if self.process.poll() is None:
            self.interrupt()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in map(int, re.findall(r"backend (?:started|found at work), process (\d+)", self.log())):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda gone=pid: not alive(gone), 30, f"process {pid} is gone")

    def ask(
        self,
        port: int,
        target: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 60.0,
        source: str = "127.0.0.1",
    ) -> Answer:
        """One HTTP exchange on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds, source_address=(source, 0))
        try:
            connection.request(method, target, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()

    def post(self, port: int, target: str, value: object) -> Answer:
        """POST a JSON value."""
        return self.ask(port, target, method="POST", body=json.dumps(value).encode())

    def metric(self, line: str) -> float:
        """The value of one sample, by its name and labels as exposed; 0 when it is not there."""
        text = self.ask(self.ports[0], "/metrics").body.decode()
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0
