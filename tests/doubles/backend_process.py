"""The backend as a process of its own, whichever body it runs, until it says that it is ready or why not."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.doubles.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
READY = "BACKEND-READY "


class BackendProcess:
    """One start of the backend; its output goes to files in ``folder``."""

    def __init__(
        self, folder: Path, arguments: Sequence[str] = (), *, command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.command = list(command) or [
            sys.executable, "-m", "backend.launch", "--port", "0", "--cpu", "--data", str(folder / "data"), *arguments
        ]  # fmt: skip
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if not command:
            for name in ("COMFYUI_DIR", "COMFY_NUM_GPUS", "COMFY_MULTI_GPU_SCHED", "COMFY_TESTING_NODES"):
                self.env.pop(name, None)
        self.env.update(env or {})
        self.stdout = folder / "backend.out"
        self.stderr = folder / "backend.err"
        self.process: subprocess.Popen[bytes]

    def start(self) -> "BackendProcess":
        """Start it; returns at once."""
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=self.env, cwd=self.folder
            )
        return self

    def wait_ready(self, seconds: float = 60.0) -> dict[str, Any]:
        """The ready line's content; fails with the log when the process ends instead."""

        def told() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the backend ended with {self.process.returncode}:\n{self.log()}")
            return bool(self._ready_lines())

        try:
            wait_until(told, seconds, "ready line")
        except TimeoutError:
            raise AssertionError(f"no ready line:\n{self.log()}") from None
        found: dict[str, Any] = json.loads(self._ready_lines()[0])
        return found

    def _ready_lines(self) -> list[str]:
        text = self.stdout.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        return [line[len(READY) :] for line in lines if line.startswith(READY) and line.endswith("\n")]

    @property
    def url(self) -> str:
        found: str = self.wait_ready()["url"]
        return found

    def log(self) -> str:
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def stop(self, seconds: float = 15.0) -> int:
        """Ask it to end as the supervisor does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.terminate()
            killer = threading.Timer(5, self.process.kill)
            killer.start()
            self.process.wait()
            killer.cancel()
