"""The line at the front door with real processes: cancelling hits the right job, and nothing is lost."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import websocket

from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import wait_until

Make = Callable[..., Product]
QUICK = GENEROUS + "\n[jobs]\nlook = 0.05\n"
THEM, US = "127.0.0.2", "127.0.0.1"


def submit(product: Product, prompt: object, source: str = US, **more: object) -> str:
    """The id of a job that was taken at the front door."""
    body = json.dumps({"prompt": prompt, **more}).encode()
    answer = product.ask(product.ports[0], "/prompt", method="POST", body=body, source=source)
    assert answer.status == 200, answer.body
    job: str = answer.json()["prompt_id"]
    return job


def state(product: Product, job: str) -> str:
    """What the jobs API says."""
    found: str = product.ask(product.ports[0], f"/jobs/{job}").json()["state"]
    return found


def test_fifty_interrupts_never_touch_the_neighbour(make: Make):
    """A is stopped fifty times, by its id in any state and without one while it runs; B beside it is never touched."""
    product = make(gpus=2, settings=QUICK).start().ready()
    front = product.ports[0]
    beside = submit(product, sleeping(600.0, 1), THEM)
    wait_until(lambda: state(product, beside) == "running", 30, "B runs")
    for turn in range(50):
        job = submit(product, sleeping(600.0, 100 + turn))
        if turn % 2:
            # At once: on its way, waiting, or running already.
            assert product.post(front, "/interrupt", {"prompt_id": job}).status == 200
        else:
            wait_until(lambda job=job: state(product, job) == "running", 30, f"A runs, turn {turn}")
            assert product.ask(front, "/interrupt", method="POST", source=US).status == 200
        wait_until(lambda job=job: state(product, job) == "canceled", 30, f"A is stopped, turn {turn}")
        assert state(product, beside) == "running", turn
    product.ask(front, "/interrupt", method="POST", source=THEM)
    wait_until(lambda: state(product, beside) == "canceled", 30, "B's own client stops it")
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def heard(socket: websocket.WebSocket) -> list[dict[str, Any]]:
    """Messages that are there, JSON alone."""
    found = []
    with contextlib.suppress(websocket.WebSocketTimeoutException):
        while True:
            data = socket.recv()
            if isinstance(data, str) and data:
                found.append(json.loads(data))
    return found


def counts_of(events: list[dict[str, Any]]) -> list[int]:
    """What each ``status`` said is left."""
    told = [each["data"]["status"] for each in events if each["type"] == "status"]
    return [status["exec_info"]["queue_remaining"] for status in told]


def test_a_socket_never_hears_zero_while_its_job_waits(make: Make):
    """Some clients take that for the end: the count is at least 1 from the answer to the job's own last event."""
    product = make(gpus=2, settings=QUICK).start().ready()
    front = product.ports[0]
    others = [submit(product, sleeping(600.0, number), THEM, client_id="them") for number in range(4)]
    events: list[dict[str, Any]] = []
    socket = websocket.create_connection(f"ws://127.0.0.1:{front}/ws?clientId=us", timeout=0.05)

    def counts() -> list[int]:
        events.extend(heard(socket))
        return counts_of(events)

    try:
        job = submit(product, tiny(77), US, client_id="us")
        wait_until(lambda: 1 in counts(), 30, "our waiting job is counted")
        assert product.ask(front, f"/jobs/{job}").json()["position"] == 1
        first = counts().index(1)
        for other in others:
            assert product.post(front, "/interrupt", {"prompt_id": other}).status == 200
        wait_until(lambda: counts() and "execution_success" in {each["type"] for each in events}, 60, "our job's end")
    finally:
        socket.close()
    end = next(at for at, each in enumerate(events) if each["type"] == "execution_success")
    before = sum(each["type"] == "status" for each in events[:end])
    assert 0 not in counts_of(events)[first:before], events
    assert {each["data"]["prompt_id"] for each in events if "prompt_id" in each["data"]} == {job}
    assert product.stop() == 0


def test_a_killed_gateway_remembers_its_line(make: Make):
    """kill -9 with twelve jobs waiting at the front door: after the next start all of them run, each once."""
    product = make(gpus=2, settings=QUICK).start().ready()
    jobs = [submit(product, sleeping(0.5, 10 + number), prompt_id=f"job-{number}") for number in range(16)]
    product.process.kill()
    product.process.wait()
    product.start().ready()
    for job in jobs:
        wait_until(lambda job=job: state(product, job) == "succeeded", 60, job)
    attempts = [product.ask(product.ports[0], f"/jobs/{job}").json()["attempts"] for job in jobs]
    assert attempts == [1] * 16
    assert product.stop() == 0
    assert "Traceback" not in product.log()
