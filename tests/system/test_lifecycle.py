"""Starting, dying, coming back and stopping, with real processes and real signals."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

from tests.doubles.product import Answer, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import alive, wait_until

ENDLESS = (
    b"POST /upload/image HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
)
"""The beginning of an upload whose rest never comes."""

Make = Callable[..., Product]


@contextmanager
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def running(product: Product, gpu: int) -> int:
    """Jobs that run on one GPU now."""
    queue: int = len(product.ask(product.ports[1 + gpu], "/queue").json()["queue_running"])
    return queue


def test_a_backend_killed_during_a_job_comes_back_and_clients_are_told_meanwhile(make: Make):
    """kill -9: 503 in ComfyUI's shape with Retry-After on every port, never a hang; then the next job runs."""
    product = make(gpus=2).start().ready()
    _, first, second = product.ports
    assert product.post(first, "/prompt", {"prompt": sleeping(60)}).status == 200
    wait_until(lambda: running(product, 0) == 1, 20)
    killed = product.backend_pid()
    os.kill(killed, signal.SIGKILL)
    seen: list[Answer] = []

    def refused() -> bool:
        seen.append(product.ask(second, "/queue", seconds=10))
        return seen[-1].status == 503

    wait_until(refused, 20, "503 while the backend is away")
    error = seen[-1].json()["error"]
    assert error["type"] == "backend_unavailable"
    assert error["message"]
    assert int(seen[-1].headers["Retry-After"]) >= 1
    wait_until(lambda: product.ask(product.ports[0], "/health").status == 503, 20, "health knows")
    assert product.ask(product.ports[0], "/metrics").status == 200
    wait_until(lambda: product.ask(second, "/queue").status == 200, 60, "the backend is back")
    assert product.backend_pid() != killed
    assert product.metric("comfy_gateway_backend_restarts_total") == 1
    # On the other GPU: the first has its interrupted job again.
    job = product.post(second, "/prompt", {"prompt": tiny()}).json()["prompt_id"]
    wait_until(lambda: job in product.ask(second, f"/history/{job}").json(), 20, "the next job's picture")
    assert product.stop() == 0


def test_ctrl_c_ends_both_processes_in_order(make: Make):
    """With a job running and a WebSocket open: exit code 0, both processes gone, nothing in the log to worry about."""
    product = make(gpus=1).start().ready()
    backend = product.backend_pid()
    bridge = websocket.create_connection(f"ws://127.0.0.1:{product.ports[1]}/ws?clientId=me", timeout=20)
    assert product.post(product.ports[1], "/prompt", {"prompt": sleeping(60)}).status == 200
    wait_until(lambda: running(product, 0) == 1, 20)
    assert product.stop() == 0
    assert not alive(backend)
    assert "Traceback" not in product.log()
    bridge.shutdown()


def test_sigterm_is_a_clean_stop_too(make: Make):
    """What an init system sends ends with 0, also while the backend is still starting."""
    product = make(gpus=1).start()
    wait_until(lambda: "backend started" in product.log(), 20)
    backend = product.backend_pid()
    product.process.terminate()
    assert product.process.wait(30) == 0
    assert not alive(backend)


def test_a_second_ctrl_c_does_not_wait(make: Make):
    """A request that would be waited for a long time is not, when asked twice."""
    product = make(gpus=1, drain=3600).start().ready()
    backend = product.backend_pid()
    with socket.create_connection(("127.0.0.1", product.ports[1])) as slow:
        slow.sendall(ENDLESS)
        # The upload, and the scrape that asks.
        wait_until(lambda: product.metric("comfy_gateway_in_flight_requests") >= 2, 20, "the upload is in flight")
        product.interrupt()
        wait_until(lambda: refuses(product.ports[1]), 20, "the gateway stops listening")
        assert product.process.poll() is None
        product.interrupt()
        assert product.process.wait(30) == 0
    assert not alive(backend)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("settings", ['[jobs]\njournal = ""\n', '[jobs]\norphan = "1s"\n'])
def test_the_backend_does_not_outlive_a_killed_gateway_for_long(make: Make, settings: str):
    """kill -9 of the gateway leaves nothing behind: at once without a journal, with one after its time."""
    product = make(gpus=1, settings=settings).start().ready()
    backend = product.backend_pid()
    product.process.kill()
    product.process.wait()
    wait_until(lambda: not alive(backend), 60, "the backend is gone")


@pytest.mark.parametrize("which", ["front door", "GPU 1", "backend"])
def test_a_busy_port_is_one_line_that_names_it(make: Make, which: str):
    """Exit code 1 before any backend is started."""
    product = make(gpus=2)
    with taken() as port:
        if which == "backend":
            product.backend_port = port
        else:
            product.ports[0 if which == "front door" else 2] = port
        assert product.start().process.wait(30) == 1
    (line,) = product.log().splitlines()
    assert str(port) in line
    assert product.said() == ""


def test_the_gateway_answers_before_the_backend_is_ready(make: Make):
    """While the backend starts: 503 with Retry-After, health says unhealthy, metrics say why."""
    product = make(gpus=1).start()
    wait_until(lambda: product.ask(product.ports[0], "/health"), 20, "the gateway listens")
    answer = product.ask(product.ports[1], "/queue")
    assert " is ready" not in product.said(), "too late to see it starting"
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert product.metric("comfy_gateway_backend_up") == 0


def test_a_gateway_in_front_of_somebody_elses_backend(product: Product, make: Make):
    """--no-backend: ready when the other one answers, serves it, and leaves it alone when it ends."""
    second = make(behind=product.url, arguments=("--no-backend",)).start().ready()
    assert "comfyui" in second.said()
    assert "backend started" not in second.log()
    assert second.post(second.ports[3], "/prompt", {"prompt": tiny(3)}).json()["gpu_id"] == 2
    assert second.stop() == 0
    assert product.ask(product.ports[1], "/queue").status == 200


def test_without_somebody_elses_backend_it_waits_for_it(make: Make):
    """Nothing listens there: 503 that says so, and a clean stop."""
    product = make(gpus=1, arguments=("--no-backend",)).start()
    wait_until(lambda: product.ask(product.ports[0], "/health").status == 503, 20)
    wait_until(lambda: b"Nothing listens on" in product.ask(product.ports[1], "/queue").body, 20)
    assert product.stop() == 0


def test_listening_beyond_this_machine_warns(make: Make, product: Product):
    """Everybody can use the GPUs then, and the log says so."""
    open_to_all = make(gpus=1, behind=product.url, settings="[auth]\nallow_open = true\n")
    config = open_to_all.config
    open_to_all.config = lambda: config().replace("[listen]\n", '[listen]\nhost = ["0.0.0.0"]\n')
    open_to_all.start().ready()
    assert "0.0.0.0 can be reached from other machines and allow_open lets them in" in open_to_all.log()
    assert open_to_all.stop() == 0


def test_a_restarted_backend_takes_clients_that_kept_their_connection(make: Make):
    """A client with a kept-alive connection sees 503s and then answers on it, without connecting again."""
    product = make(gpus=1).start().ready()
    connection = http.client.HTTPConnection("127.0.0.1", product.ports[1], timeout=30)

    def status() -> int:
        connection.request("GET", "/queue")
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert status() == 200
    local = connection.sock.getsockname()
    os.kill(product.backend_pid(), signal.SIGKILL)
    statuses = {503}
    wait_until(lambda: statuses.add(status()) or product.metric("comfy_gateway_backend_restarts_total") == 1, 30)
    wait_until(lambda: status() == 200, 60)
    assert connection.sock.getsockname() == local
    assert statuses <= {200, 502, 503}
    connection.close()


def test_two_starts_do_not_share_a_port(product: Product, make: Make):
    """A second start on the same ports ends with one line while the first goes on."""
    second = make()
    second.ports = product.ports
    assert second.start().process.wait(30) == 1
    assert str(product.ports[0]) in second.log()
    assert product.ask(product.ports[0], "/health").status == 200


def test_the_cli_is_installed_as_a_command():
    """`comfy-gateway` itself runs, as the README says."""
    done = subprocess.run(["comfy-gateway", "--version"], capture_output=True, text=True, check=False, env=with_bin())
    assert done.returncode == 0
    assert done.stdout.startswith("comfy-gateway ")


def with_bin() -> dict[str, str]:
    """An environment in which the interpreter's own folder comes first."""
    return {**os.environ, "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")}
