"""Run by a service manager: it is told how far we are, hands sockets over, and a restart refuses nobody."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import Config
from tests.doubles.product import GENEROUS, ROOT, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import alive, wait_until

Make = Callable[..., Product]

# What systemd does before it executes a service: the sockets become descriptors from 3 on, addressed to this process.
AS_SYSTEMD = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 100) for each in sys.argv[1].split(",")]
for at, fd in enumerate(fds):
    os.dup2(fd, 3 + at)
    os.close(fd)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = str(len(fds)), str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "gateway", *sys.argv[2:]])
"""


class Manager:
    """Holds the ports, starts the gateway, hears it."""

    def __init__(self, product: Product) -> None:
        self.product = product
        config = product.folder / "config.toml"
        config.write_text(product.config(), encoding="utf-8")
        self.sockets = [socket.create_server(("127.0.0.1", port), backlog=1024) for port in product.ports]
        self.heard: list[str] = []
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = str(product.folder / "notify")
        self._ear.bind(self._path)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while data := self._ear.recv(4096):
            self.heard += data.decode().split("\n")

    def start(self) -> "subprocess.Popen[bytes]":
        fds = [sock.fileno() for sock in self.sockets]
        folder = self.product.folder
        env = {**os.environ, "NOTIFY_SOCKET": self._path, "COMFY_TESTING_NODES": "1", "PYTHONPATH": str(ROOT)}
        with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
            return subprocess.Popen(
                [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, fds)), "up", "--config", "config.toml"],
                cwd=folder,
                env=env,
                stdout=out,
                stderr=err,
                pass_fds=fds,
            )

    def ready(self, times: int) -> None:
        def said() -> bool:
            return self.heard.count("READY=1") >= times

        try:
            wait_until(said, 100, "READY=1")
        except TimeoutError:
            raise AssertionError(self.product.log()) from None

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._path)
        self._listener.join(10)
        self._ear.close()


class Traffic(threading.Thread):
    """A client that opens a connection for each request, as a load balancer's health check or a script does."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product
        self.over = threading.Event()
        self.answered = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        while not self.over.is_set():
            try:
                answer = self.product.ask(self.product.ports[1], "/queue")
                if answer.status != 200:
                    self.wrong.append((answer.status, answer.body))
                self.answered += 1
            except OSError as error:
                self.wrong.append(error)


def test_a_new_gateway_takes_over_under_load_and_refuses_nobody(make: Make):
    """USR1 ends the gateway and leaves backend and jobs; the ports stay open; not one request fails."""
    product = make(gpus=1, settings=GENEROUS, drain=20.0)
    manager = Manager(product)
    old = manager.start()
    new = None
    try:
        manager.ready(1)
        backend = product.backend_pid()
        job = product.post(product.ports[1], "/prompt", {"prompt": sleeping(4.0, 1)}).json()["prompt_id"]
        traffic = [Traffic(product) for _ in range(3)]
        for each in traffic:
            each.start()
        wait_until(lambda: all(each.answered > 5 for each in traffic), 60, "traffic")
        old.send_signal(signal.SIGUSR1)
        assert old.wait(60) == 0, product.log()
        assert "STOPPING=1" in manager.heard
        assert alive(backend), "the backend goes on"
        at = [each.answered for each in traffic]
        new = manager.start()
        manager.ready(2)
        assert product.backend_pid() == backend, "and is found again"
        wait_until(lambda: all(each.answered > before + 20 for each, before in zip(traffic, at, strict=True)), 60)
        for each in traffic:
            each.over.set()
            each.join(60)
        assert [each.wrong for each in traffic] == [[], [], []]

        def ended() -> bool:
            return job in product.ask(product.ports[1], f"/history/{job}").json()

        wait_until(ended, 60, "the job that ran meanwhile")
        history = product.ask(product.ports[1], f"/history/{job}").json()
        assert history[job]["status"]["status_str"] == "success"
        new.send_signal(signal.SIGTERM)
        assert new.wait(60) == 0
        assert not alive(backend), "an ordinary end takes the backend along"
        assert "Traceback" not in product.log(), product.log()
    finally:
        for process in (old, new):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        manager.close()


def test_a_reload_is_announced(make: Make, product: Product):
    """RELOADING=1 with the time it began, then READY=1: what ``Type=notify-reload`` waits for."""
    front = make(behind=product.url, arguments=("--no-backend",), gpus=1, settings=GENEROUS)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(front.folder / "n"))
    listener.settimeout(60)
    front.env = {"NOTIFY_SOCKET": str(front.folder / "n")}
    try:
        front.start().ready()
        assert b"READY=1" in listener.recv(4096)
        front.process.send_signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", listener.recv(4096))
        assert listener.recv(4096) == b"READY=1"
        assert front.post(front.ports[1], "/prompt", {"prompt": tiny(1)}).status == 200
        assert front.stop() == 0
        assert listener.recv(4096) == b"STOPPING=1"
    finally:
        listener.close()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze (Debian: systemd)")
def test_the_units_are_in_order(tmp_path: Path):
    """systemd finds nothing to say about them, and the time to stop is longer than the drain."""
    for name in ("comfy-gateway.service", "comfy-gateway.socket"):
        text = (ROOT / "deploy" / "systemd" / name).read_text(encoding="utf-8")
        text = text.replace("/opt/comfy-gateway/bin/comfy-gateway", "/bin/true")
        (tmp_path / name).write_text(text.replace("User=comfy\nGroup=comfy\n", ""), encoding="utf-8")
    units = [str(tmp_path / name) for name in ("comfy-gateway.service", "comfy-gateway.socket")]
    command = ["systemd-analyze", "verify", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    service = (ROOT / "deploy" / "systemd" / "comfy-gateway.service").read_text(encoding="utf-8")
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", service, re.MULTILINE)
    config = Config()
    assert stop
    assert int(stop[1]) > config.timeouts.drain + config.backend.stop_timeout
    ports = re.findall(
        r"^ListenStream=127\.0\.0\.1:(\d+)$",
        (ROOT / "deploy" / "systemd" / "comfy-gateway.socket").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [int(port) for port in ports] == [config.listen.front_port, *config.listen.gpu_ports]


def test_the_containers_configuration_is_one(tmp_path: Path):
    """What the image is built with passes ``check``, with the warning that it is open."""
    shutil.copy(ROOT / "deploy" / "docker" / "config.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "config.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "allow_open lets them in" in done.stdout
    board = ROOT / "deploy" / "grafana" / "dashboard.json"
    compose = (ROOT / "deploy" / "docker" / "compose.yml").read_text(encoding="utf-8")
    for mounted in re.findall(r"- (\.\./[^:]+):", compose):
        assert (ROOT / "deploy" / "docker" / mounted).exists(), mounted
    assert json.loads(board.read_text(encoding="utf-8"))["uid"] == "comfy-gateway"
