"""The jobs API over real processes: the picture in one call, progress, and promises that outlive a death."""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.conftest import pick_ports
from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import painting, sleeping, tiny
from tests.doubles.wait import wait_until

Make = Callable[..., Product]
LIMIT = 60.0


def order(product: Product, workflow: object, **fields: object) -> str:
    """The id of a job submitted at the front door."""
    answer = product.post(product.ports[0], "/jobs", {"workflow": workflow, **fields})
    assert answer.status == 202, answer.body
    job: str = answer.json()["id"]
    return job


def events(product: Product, job: str, last: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, name and data of a job's events, to the end of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", product.ports[0], timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", f"/jobs/{job}/events", headers={"Last-Event-ID": last} if last else {})
        answer = connection.getresponse()
        assert answer.status == 200
        fields: dict[str, str] = {}
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
                fields = {}


def test_one_call_gives_the_picture(product: Product):
    """Submitted, run and fetched in one request; the same bytes lie under the job's output."""
    front = product.ports[0]
    body = json.dumps({"workflow": painting(5, "api")}).encode()
    headers = {"Accept": "image/*", "Prefer": "wait=60"}
    got = product.ask(front, "/jobs", method="POST", body=body, headers=headers)
    assert (got.status, got.headers["Content-Type"]) == (200, "image/png"), got.body[:500]
    assert got.body.startswith(b"\x89PNG")
    assert product.ask(front, got.headers["Content-Location"]).body == got.body
    part = product.ask(front, got.headers["Content-Location"], headers={"Range": "bytes=1-3"})
    assert (part.status, part.body) == (206, b"PNG")
    assert product.ask(front, got.headers["Location"]).json()["state"] == "succeeded"
    node = product.post(front, "/jobs", {"workflow": {"1": {"class_type": "Nowhere", "inputs": {}}}})
    assert (node.status, "Nowhere" in node.json()["error"]["message"]) == (400, True)


def test_progress_comes_while_the_job_runs(product: Product):
    """States in order with their numbers, progress of the sampler's steps between, and the whole job at the end."""
    seeds = itertools.count(6)

    def heard() -> bool:
        """Whether a job's progress was told; a gateway that has just started may not listen yet."""
        told[:] = events(product, order(product, painting(next(seeds), "progress", steps=400, size=128)))
        return any(name == "progress" and data["value"] is not None for _, name, data in told)

    told: list[tuple[str, str, dict[str, Any]]] = []
    wait_until(heard, LIMIT, "progress")
    states = [data["state"] for _, name, data in told if name != "progress"]
    assert states == ["queued", "running", "succeeded"]
    assert [number for number, name, _ in told if name != "progress"] == ["1", "2", "3"]
    assert told[-1][1] == "end"
    assert told[-1][2]["outputs"]
    steps = [data["value"] for _, name, data in told if name == "progress" and data["value"] is not None]
    assert steps == sorted(steps)
    nodes = [data["nodes_total"] for _, name, data in told if name == "progress"]
    assert set(nodes) == {7}


def test_generate_waits_and_says_so(product: Product):
    """The scheduler's way: one POST that returns when the job is done, or says TIMEOUT."""
    front = product.ports[0]
    done = product.post(front, "/generate", {"workflow": tiny(77), "wait_for_completion": True}).json()
    assert (done["error"], done["assigned_gpu"] in range(4)) == (None, True)
    late = product.post(front, "/generate", {"workflow": sleeping(3, 78), "wait_for_completion": True, "timeout": 0.1})
    assert late.json()["error"] == "TIMEOUT"
    job = late.json()["prompt_id"]
    gone = product.ask(front, f"/jobs/{job}", method="DELETE")
    assert gone.status in {200, 202}
    wait_until(lambda: product.ask(front, f"/jobs/{job}").json()["state"] == "canceled", LIMIT, "canceled")


def test_events_go_on_over_the_death_of_the_backend(make: Make):
    """One stream: running, queued again when the backend is killed, running again, and the end."""
    product = make(gpus=1, settings=GENEROUS).start().ready()
    job = order(product, sleeping(2.0, 5))
    told = []
    for _, name, data in events(product, job):
        if name == "progress":
            continue
        told.append(data["state"])
        if told == ["queued", "running"]:
            os.kill(product.backend_pid(), signal.SIGKILL)
    assert told == ["queued", "running", "queued", "running", "succeeded"]
    assert [data["state"] for _, _, data in events(product, job, last="3")] == ["running", "succeeded"]
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def test_a_webhook_outlives_the_gateway(make: Make):
    """The receiver is away when the job ends, the gateway is killed, and the next one delivers."""
    heard: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (port,) = pick_ports(1)
    settings = GENEROUS + '[webhooks]\nallow = ["127.0.0.0/8"]\nfirst_wait = 0.5\nattempts = 1000\n'
    product = make(gpus=1, settings=settings).start().ready()
    job = order(product, tiny(9), webhook=f"http://127.0.0.1:{port}/hook")

    def tried() -> bool:
        shown = product.ask(product.ports[0], f"/jobs/{job}").json()
        return shown["webhook"]["tries"] > 0

    wait_until(tried, LIMIT, "an attempt that nobody hears")
    product.process.kill()
    product.process.wait()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        product.start().ready()
        wait_until(lambda: heard, LIMIT, "the webhook")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (heard[0]["type"], heard[0]["data"]["id"], heard[0]["data"]["state"]) == ("job.ended", job, "succeeded")
    wait_until(
        lambda: product.ask(product.ports[0], f"/jobs/{job}").json()["webhook"]["delivered_at"], LIMIT, "written down"
    )
    assert product.stop() == 0
