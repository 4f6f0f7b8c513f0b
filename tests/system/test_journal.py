"""What was promised is kept: backend, gateway or both are killed, and every job ends under its own id."""

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

import websocket
import websockets.sync.client

from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import deadly, sleeping, tiny
from tests.doubles.wait import wait_until

Make = Callable[..., Product]


def submit(product: Product, gpu: int, prompt: object, **more: object) -> str:
    """The id of a job that was taken."""
    answer = product.post(product.ports[1 + gpu], "/prompt", {"prompt": prompt, **more})
    assert answer.status == 200, answer.body
    job: str = answer.json()["prompt_id"]
    return job


def entry(product: Product, gpu: int, job: str) -> dict[str, Any]:
    """The job's entry in the history; empty while there is none."""
    answer = product.ask(product.ports[1 + gpu], f"/history/{job}")
    return answer.json().get(job, {}) if answer.status == 200 else {}


def running(product: Product, gpu: int) -> int:
    """Jobs that run on one GPU now."""
    answer = product.ask(product.ports[1 + gpu], "/queue")
    return len(answer.json()["queue_running"]) if answer.status == 200 else 0


def load(product: Product, gpus: int, seconds: float, color: int = 0) -> dict[str, int]:
    """One running and five pending jobs per GPU, by id; the running ones take their time."""
    jobs: dict[str, int] = {}
    for gpu in range(gpus):
        jobs[submit(product, gpu, sleeping(seconds, color + 100 * gpu))] = gpu
        for number in range(5):
            jobs[submit(product, gpu, tiny(color + 100 * gpu + number + 1))] = gpu
    wait_until(lambda: all(running(product, gpu) == 1 for gpu in range(gpus)), 20, "one running per GPU")
    return jobs


def all_succeed(product: Product, jobs: dict[str, int], seconds: float = 60) -> None:
    """Every job is found under its own id on its port, with a picture."""
    for job, gpu in jobs.items():
        wait_until(lambda job=job, gpu=gpu: entry(product, gpu, job), seconds, f"{job} on GPU {gpu}")
        found = entry(product, gpu, job)
        assert found["status"]["status_str"] == "success", found["status"]
        assert any(output.get("images") for output in found["outputs"].values())


def test_a_killed_backend_loses_no_job(make: Make):
    """kill -9 with one running and five pending jobs on each of two GPUs: all finish under their own prompt_id."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    jobs = load(product, 2, 2.0)
    os.kill(product.backend_pid(), signal.SIGKILL)
    all_succeed(product, jobs)
    assert product.metric("comfy_gateway_backend_restarts_total") == 1
    order = list(product.ask(product.ports[1], "/history").json())
    for gpu in range(2):
        mine = [job for job in jobs if jobs[job] == gpu]
        assert [job for job in order if job in mine] == mine
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def test_a_killed_gateway_finds_its_backend_and_its_jobs(make: Make):
    """The next start takes the running backend over, and every job ends; with both killed the journal is enough."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    jobs = load(product, 2, 3.0)
    backend = product.backend_pid()
    product.process.kill()
    product.process.wait()
    product.start().ready()
    assert product.backend_pid() == backend
    assert "backend found at work" in product.log()
    all_succeed(product, jobs)
    assert product.metric("comfy_gateway_jobs_recovered_total") == 0
    more = load(product, 2, 2.0, color=1000)
    os.kill(backend, signal.SIGKILL)
    product.process.kill()
    product.process.wait()
    product.start().ready()
    all_succeed(product, {**jobs, **more})
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def test_a_job_that_takes_the_backend_down_is_set_aside(make: Make):
    """It fails with a message that says so; what ran beside it and what waited behind it succeed."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    beside = submit(product, 1, sleeping(1.0, 1))
    poison = submit(product, 0, deadly(2))
    behind = [submit_when_up(product, 0, tiny(number)) for number in (3, 4)]
    wait_until(lambda: entry(product, 0, poison), 90, "the verdict")
    status = entry(product, 0, poison)["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    (event, data) = status["messages"][-1]
    assert event == "execution_error"
    assert "took the backend down" in data["exception_message"]
    all_succeed(product, {beside: 1, behind[0]: 0, behind[1]: 0})
    assert product.metric("comfy_gateway_backend_restarts_total") <= 3
    assert product.post(product.ports[1], "/prompt", {"prompt": tiny(5)}).status == 200


def submit_when_up(product: Product, gpu: int, prompt: object) -> str:
    """The id of a job that was taken as soon as the backend would have it."""
    taken: list[str] = []

    def try_it() -> bool:
        answer = product.post(product.ports[1 + gpu], "/prompt", {"prompt": prompt})
        if answer.status == 200:
            taken.append(answer.json()["prompt_id"])
        return bool(taken)

    wait_until(try_it, 60, "a submission is taken")
    return taken[0]


def test_the_same_id_or_key_runs_once(make: Make):
    """Sent again, also after both processes were restarted: the first answer, and one run."""
    product = make(gpus=1, settings=GENEROUS).start().ready()
    port = product.ports[1]
    body = json.dumps({"prompt": tiny(1), "prompt_id": "mine"}).encode()
    keyed = json.dumps({"prompt": tiny(2)}).encode()

    def post(data: bytes, **headers: str) -> Any:
        return product.ask(port, "/prompt", method="POST", body=data, headers=headers)

    first, second = post(body), post(body)
    key = {"Idempotency-Key": "k1"}
    third, fourth = post(keyed, **key), post(keyed, **key)
    assert (first.status, first.json()) == (second.status, second.json())
    assert (third.status, third.json()) == (fourth.status, fourth.json())
    other = post(body, **key)
    assert (other.status, other.json()["error"]["type"]) == (422, "idempotency_key_reuse")
    wait_until(lambda: len(product.ask(port, "/history").json()) == 2, 20)
    assert product.stop() == 0
    product.start().ready()
    assert post(body).json() == first.json()
    assert post(keyed, **key).json() == third.json()
    assert product.ask(port, "/queue").json()["queue_pending"] == []
    assert len(product.ask(port, "/history").json()) == 2


def test_history_outlives_both_processes(make: Make):
    """Entries of earlier lives are shown in ComfyUI's shape, older than the backend's own; removed ones are not."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    port, other = product.ports[1:]
    before = [submit(product, 0, tiny(number)) for number in range(3)]
    wait_until(lambda: len(product.ask(port, "/history").json()) == 3, 20)
    entries = product.ask(port, "/history").json()
    wait_until(lambda: product.metric('comfy_gateway_jobs{state="succeeded"}') == 3, 20)
    assert product.stop() == 0
    product.start().ready()
    assert product.ask(other, "/history").json() == entries
    assert product.ask(other, f"/api/history/{before[1]}").json() == {before[1]: entries[before[1]]}
    newest = submit(product, 1, tiny(9))
    wait_until(lambda: newest in product.ask(port, "/history").json(), 20)
    assert list(product.ask(port, "/history").json()) == [*before, newest]
    assert list(product.ask(port, "/history?max_items=2").json()) == [before[2], newest]
    assert list(product.ask(port, "/history?offset=1&max_items=2").json()) == before[1:]
    # The lane of the port, as in ComfyUI.
    assert product.post(other, "/history", {"delete": [before[0]]}).status == 200
    assert product.post(port, "/history", {"delete": [before[1]]}).status == 200
    assert list(product.ask(port, "/history").json()) == [before[0], before[2], newest]
    assert product.post(port, "/history", {"clear": True}).status == 200
    assert list(product.ask(port, "/history").json()) == [newest]
    assert product.ask(port, f"/history/{before[2]}").json() == {}


def test_what_was_canceled_is_not_run_again(make: Make):
    """Interrupted, deleted and cleared jobs stay so when the backend is killed right after."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    one, two = product.ports[1:]
    stubborn = submit(product, 0, sleeping(60, 1))
    waiting, stays = submit(product, 0, tiny(2)), submit(product, 0, tiny(3))
    blocker, cleared = submit(product, 1, sleeping(2, 4)), submit(product, 1, tiny(5))
    wait_until(lambda: running(product, 0) + running(product, 1) == 2, 20)
    assert product.post(one, "/queue", {"delete": [waiting]}).status == 200
    assert product.post(two, "/queue", {"clear": True}).status == 200
    assert product.post(two, "/interrupt", {"prompt_id": stubborn}).status == 200
    os.kill(product.backend_pid(), signal.SIGKILL)
    all_succeed(product, {stays: 0, blocker: 1})
    states = {job: state(product, job) for job in (stubborn, waiting, cleared)}
    assert states == dict.fromkeys(states, "canceled")
    queue = product.ask(one, "/queue").json()
    assert (queue["queue_running"], queue["queue_pending"]) == ([], [])


def state(product: Product, job: str) -> str:
    """What the journal's file says of a job."""
    with sqlite3.connect(f"file:{product.folder}/data/jobs/jobs.sqlite3?mode=ro", uri=True) as found:
        (text,) = found.execute("SELECT record FROM jobs WHERE id = ?", (job,)).fetchone()
    found.close()
    return json.loads(text)["state"]


def test_events_go_on_over_the_backends_death(make: Make):
    """Clients that keep their WebSocket open, compressed or not, hear the end of all their jobs on that socket."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    urls = [f"ws://127.0.0.1:{port}/ws?clientId=me" for port in product.ports[1:]]
    bridges = [Plain(urls[0]), Compressed(urls[1])]
    jobs: list[list[str]] = []
    for gpu, bridge in enumerate(bridges):
        bridge.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        prompts = [sleeping(2, 10 * gpu), tiny(10 * gpu + 1), tiny(10 * gpu + 2)]
        jobs.append([submit(product, gpu, prompt, client_id="me") for prompt in prompts])
    wait_until(lambda: running(product, 0) + running(product, 1) == 2, 20)
    os.kill(product.backend_pid(), signal.SIGKILL)
    for bridge, mine in zip(bridges, jobs, strict=True):
        assert ends_of(bridge, mine) == mine
        bridge.close()
    assert [product.metric(f'comfy_gateway_bridges_total{{gpu="{gpu}"}}') for gpu in range(2)] == [1, 1]
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def ends_of(bridge: "Plain | Compressed", jobs: list[str]) -> list[str]:
    """Jobs in the order in which their success is heard; none of others may be, and no empty queue before the end."""
    ended: list[str] = []
    begun = False
    while set(ended) != set(jobs):
        message = bridge.receive()
        if isinstance(message, bytes):
            continue
        event = json.loads(message)
        assert event["data"].get("prompt_id", jobs[0]) in jobs
        if event["type"] == "execution_success":
            ended.append(event["data"]["prompt_id"])
        elif event["type"] == "status":
            remaining = event["data"]["status"]["exec_info"]["queue_remaining"]
            # Some clients take 0 for the end of their job.
            assert remaining or not begun, "an empty queue was shown while jobs were unfinished"
            begun = begun or remaining > 0
    return ended


class Plain:
    """``websocket-client``, which never compresses."""

    def __init__(self, url: str) -> None:
        self._socket = websocket.create_connection(url, timeout=60)

    def send(self, text: str) -> None:
        self._socket.send(text)

    def receive(self) -> str | bytes:
        found: str | bytes = self._socket.recv()
        return found

    def close(self) -> None:
        self._socket.close()


class Compressed:
    """``websockets``, which compresses where the server agrees, as browsers do."""

    def __init__(self, url: str) -> None:
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(websockets.sync.client.connect(url, open_timeout=20))
        assert self._socket.protocol.extensions, "the server does not compress: nothing is tested here"

    def send(self, text: str) -> None:
        self._socket.send(text)

    def receive(self) -> str | bytes:
        found: str | bytes = self._socket.recv(timeout=60)
        return found

    def close(self) -> None:
        self._open.close()
