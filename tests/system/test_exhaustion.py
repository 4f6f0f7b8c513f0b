"""What happens when the system gives no more."""

import contextlib
import http.client
import socket
import subprocess
import sys
from pathlib import Path

from tests.doubles.product import Product
from tests.doubles.wait import wait_until


def cpu_ticks(pid: int) -> int:
    """User and system time of a process."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(stat[11]) + int(stat[12])


def open_files(pid: int) -> int:
    """Descriptors that a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_without_files_left_those_who_are_there_go_on(tmp_path: Path):
    """No descriptor for a new connection: open ones are served, the process does not spin, and later all is well."""
    front = Product(tmp_path, behind="http://127.0.0.1:9", gpus=1)
    config = tmp_path / "config.toml"
    config.write_text(front.config(), encoding="utf-8")
    command = f"ulimit -n 48; exec {sys.executable} -m gateway up --config {config} --no-backend"
    with front.stderr.open("wb") as log, contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(["sh", "-c", command], stdout=log, stderr=log, cwd=tmp_path))
        stack.callback(process.kill)
        wait_until(lambda: front.ask(front.ports[0], "/health").status == 503)
        here = http.client.HTTPConnection("127.0.0.1", front.ports[0], timeout=60)
        stack.callback(here.close)

        def served() -> bool:
            here.request("GET", "/health")
            answer = here.getresponse()
            return bool(answer.read()) and answer.status == 503

        assert served()
        address = here.sock.getsockname()
        crowd = [socket.create_connection(("127.0.0.1", front.ports[0]), timeout=60) for _ in range(100)]
        wait_until(lambda: open_files(process.pid) >= 47, what="no descriptor is left")
        # What a process that does nothing but turn would get of this machine meanwhile.
        spinner = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        stack.callback(spinner.kill)
        before = cpu_ticks(process.pid)
        wait_until(lambda: served() and cpu_ticks(spinner.pid) > 100, 60, "a second of the spinner")
        assert cpu_ticks(process.pid) - before < cpu_ticks(spinner.pid) / 2
        assert here.sock.getsockname() == address
        spinner.kill()
        for each in crowd:
            each.close()
        wait_until(lambda: front.ask(front.ports[0], "/health", seconds=5).status == 503)
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in front.log()
