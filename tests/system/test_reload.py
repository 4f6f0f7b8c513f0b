"""SIGHUP with real processes: new settings under traffic, a bad file, and a terminal that is closed."""

import http.client
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import websocket

from tests.doubles.product import GENEROUS, ROOT, Product
from tests.doubles.wait import wait_until

Make = Callable[..., Product]


class Traffic(threading.Thread):
    """Requests on one kept-alive connection until told to stop; remembers what was not a 200."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.over = threading.Event()
        self.answered = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.over.is_set():
            try:
                connection.request("GET", "/queue")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.wrong.append(answer.status)
                self.answered += 1
            except OSError as error:
                self.wrong.append(error)
                return
        connection.close()


def reload(product: Product, text: str, said: str) -> None:
    """Write the file, send SIGHUP, and wait until the log says so once more."""
    before = product.log().count(said)
    (product.folder / "config.toml").write_text(text, encoding="utf-8")
    product.process.send_signal(signal.SIGHUP)
    wait_until(lambda: product.log().count(said) > before, 30, said)


def test_reloads_under_traffic_lose_nothing_and_a_bad_file_changes_nothing(make: Make, product: Product):
    """Requests on kept-alive connections and a bridge go on over ten reloads; then a new limit holds."""
    front = make(behind=product.url, arguments=("--no-backend",), settings=GENEROUS, gpus=1).start().ready()
    port = front.ports[1]
    good = front.config()
    traffic = [Traffic(port) for _ in range(3)]
    bridge = websocket.create_connection(f"ws://127.0.0.1:{port}/ws?clientId=me", timeout=60)
    try:
        for each in traffic:
            each.start()
        for number in range(10):
            before = [each.answered for each in traffic]
            reload(front, f"{good}\n[limits]\nbody = {5000 + number}\n", "reloaded: [limits] body")
            wait_until(
                lambda: all(each.answered > was for each, was in zip(traffic, before, strict=True)),  # noqa: B023
                what="traffic goes on",
            )
        reload(front, f"{good}\n[limits]\nbody = 1\nbdy = 2\n", "not reloaded")
        assert "[limits] bdy: unknown key; did you mean body?" in front.log()
        assert front.ask(port, "/prompt", method="POST", body=bytes(5010)).status == 413
        assert front.ask(port, "/prompt", method="POST", body=bytes(5009)).status == 400
        bridge.ping()
        assert bridge.recv_data(control_frame=True)[0] in {websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_PONG}
    finally:
        for each in traffic:
            each.over.set()
        for each in traffic:
            each.join()
        bridge.close()
    assert [each.wrong for each in traffic] == [[], [], []]
    assert front.stop() == 0


TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.executable, sys.argv[1:])"
"""Run a program with its standard input as the terminal that controls it."""


def test_a_closed_terminal_stops_what_was_started_from_it(tmp_path: Path):
    """SIGHUP of a terminal that is gone is no reload: nobody could stop the gateway otherwise."""
    front = Product(tmp_path, behind="http://127.0.0.1:9", gpus=1)
    config = tmp_path / "config.toml"
    config.write_text(front.config(), encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "up", "--config", str(config), "--no-backend"]
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as terminal, front.stderr.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *command],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            cwd=tmp_path,
        )
        os.close(theirs)
        try:
            wait_until(lambda: front.ask(front.ports[0], "/health").status == 503)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: "reloaded" in front.log())
            terminal.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_the_command_says_what_a_reload_has_come_to(make: Make):
    """``comfy-gateway reload``: what changed, what waits for a start, why nothing did; exit codes 0, 1 and 3."""
    front = make(behind="http://127.0.0.1:9", arguments=("--no-backend",), gpus=1).start()
    wait_until(lambda: front.ask(front.ports[0], "/live").status == 200)
    file, good = front.folder / "config.toml", front.config()

    def typed() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "gateway", "reload", "--url", f"http://127.0.0.1:{front.ports[0]}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=100)

    file.write_text(good + "[limits]\nbody = 5000\n[jobs]\nkeep = 77\n", encoding="utf-8")
    done = typed()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "changed, but only read at the start: [jobs] keep\nreloaded: [limits] body\n"
    file.write_text(good + "[limits]\nbody = 5000\nbdy = 1\nheaders = 0\n", encoding="utf-8")
    done = typed()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "they stay as they are" in done.stderr
    assert "[limits] bdy: unknown key" in done.stderr
    assert "[limits] headers" in done.stderr
    file.write_text(good + "[limits]\nbody = 5000\n", encoding="utf-8")
    assert typed().stdout == "reloaded: the settings stay as they are\n"
    assert front.ask(front.ports[1], "/prompt", method="POST", body=bytes(5001)).status == 413
    assert front.stop() == 0
    done = typed()
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
