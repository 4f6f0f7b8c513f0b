"""What is measured: an origin, and peers before it, each a process of its own on free ports of this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Final, Self

from bench.peers import GATEWAY, HAPROXY, NGINX_FRAME, NGINX_ORIGIN, NGINX_PROXY

SMALL: Final = 150
BIG: Final = 2 * 1024 * 1024
TICK: Final = os.sysconf("SC_CLK_TCK")

COMPILED: Final = "compiled"
"""The gateway with its data path compiled (``setup.py``), where ``make bench`` has built it."""
BUILT: Final = Path(__file__).resolve().parents[1] / "build" / "compiled"
PEERS: Final = ("gateway", COMPILED, "nginx", "haproxy", "aiohttp")
JOURNALED: Final = "gateway, journal"


@dataclass
class Peer:
    """One proxy under load."""

    pid: int
    port: int

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        return cpu_seconds(self.pid)


class Stand:
    """Starts everything when entered, and ends it when left. ``peers`` maps names to what is measured.

    ``origin``: ``files`` (nginx where there is one), ``routes`` (our own, with prompts and events), or ``page``.
    """

    def __init__(self, folder: Path, origin: str, peers: tuple[str, ...], page: Path | None = None) -> None:
        self.folder = folder
        self.peers: dict[str, Peer] = {}
        self.missing: list[str] = []
        """Peers that are not installed."""
        self.origin: Peer
        self._kind = origin
        self._wanted = peers
        self._page = page
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        www = self.folder / "www"
        www.mkdir(exist_ok=True)
        (www / "small").write_bytes(b"a" * SMALL)
        (www / "big").write_bytes(bytes(BIG))
        (www / "prompt").write_bytes(b'{"exec_info": {"queue_remaining": 0}}')
        try:
            self._start_origin(www)
            for name in self._wanted:
                self._start_peer(name)
            for peer in self.peers.values():
                wait_for_answer(peer.port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start_origin(self, www: Path) -> None:
        port = free_port()
        if self._kind == "page":
            process = self._start([sys.executable, "-m", "bench.frontend", str(port), str(self._page)], "origin")
        elif self._kind == "files" and find("nginx"):
            process = self._nginx("origin", NGINX_ORIGIN.format(port=port, folder=self.folder))
        else:
            process = self._start([sys.executable, "-m", "bench.origin", str(port), str(www)], "origin")
        wait_for_answer(port)
        self.origin = Peer(process.pid, port)

    def _start_peer(self, name: str) -> None:
        port, origin = free_port(), self.origin.port
        if name.startswith("gateway"):
            process = self._gateway(name, port)
        elif name == COMPILED:
            if not BUILT.is_dir():
                self.missing.append(name)
                return
            process = self._gateway(name, port, BUILT)
        elif name == "aiohttp":
            process = self._start([sys.executable, "-m", "bench.naive", str(port), f"http://127.0.0.1:{origin}"], name)
        elif not find(name):
            self.missing.append(name)
            return
        elif name == "nginx":
            process = self._nginx(name, NGINX_PROXY.format(origin=origin, port=port, folder=self.folder))
        else:
            file = self.folder / "haproxy.cfg"
            file.write_text(HAPROXY.format(origin=origin, port=port), encoding="utf-8")
            process = self._start([str(find(name)), "-db", "-q", "-f", str(file)], name)
        self.peers[name] = Peer(process.pid, port)

    def _gateway(self, name: str, port: int, tree: Path | None = None) -> subprocess.Popen[bytes]:
        folder = self.folder / name.replace(", ", "-")
        folder.mkdir(exist_ok=True)
        journal = folder / "jobs" if name == JOURNALED else ""
        file = folder / "config.toml"
        text = GATEWAY.format(front=free_port(), port=port, origin=self.origin.port, journal=journal, folder=folder)
        file.write_text(text, encoding="utf-8")
        return self._start([sys.executable, "-m", "gateway", "up", "--no-backend", "--config", str(file)], name, tree)

    def _nginx(self, name: str, inside: str) -> subprocess.Popen[bytes]:
        file = self.folder / f"{name}.conf"
        file.write_text(NGINX_FRAME.format(folder=self.folder, name=name, inside=inside), encoding="utf-8")
        return self._start([str(find("nginx")), "-p", str(self.folder), "-c", str(file)], name)

    def _start(self, command: list[str], name: str, tree: Path | None = None) -> subprocess.Popen[bytes]:
        env = os.environ if tree is None else {**os.environ, "PYTHONPATH": str(tree)}
        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tree, env=env)
        self._processes.append(process)
        return process

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find(program: str) -> str | None:
    """Where a program is, also when its folder is not in the user's PATH."""
    return which(program) or which(program, path="/usr/sbin:/usr/local/sbin")


def cpu_seconds(pid: int) -> float:
    """Time on a CPU of all threads of a process so far: to the nanosecond where the kernel says so, else to a tick."""
    tasks = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICK


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, seconds: float = 15.0) -> None:
    """Return when something listens on the port."""
    _wait(port, seconds, lambda: socket.create_connection(("127.0.0.1", port), 1).close())


def wait_for_answer(port: int, seconds: float = 20.0) -> None:
    """Return when something there answers a request with anything but 503."""

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(2)
            sock.sendall(b"GET /prompt HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            answer = sock.recv(64)
            if not answer.startswith(b"HTTP/1.1 ") or answer.startswith(b"HTTP/1.1 503"):
                raise OSError("it is not there yet")

    _wait(port, seconds, ask)


def _wait(port: int, seconds: float, look: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            look()
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing answers on port {port}") from error
            time.sleep(0.05)
        else:
            return
