"""One run of everything: every metric that is exposed moves, and every metric that is spoken of is exposed."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from prometheus_client.parser import text_string_to_metric_families

from gateway.auth import command
from gateway.auth.keys import Quota, Scope
from tests.conftest import pick_ports
from tests.doubles.product import GENEROUS, ROOT, Product
from tests.doubles.prompts import painting, sleeping, tiny
from tests.doubles.wait import wait_until
from tests.gateway.auth.test_certificate import made, needs_openssl

pytestmark = [needs_openssl, pytest.mark.timeout(400)]

STAND_STILL = {
    "comfy_gateway_build_info": "always 1; its label is what it says",
    "comfy_gateway_process_start_time_seconds": "a process starts once",
    "comfy_gateway_process_max_fds": "a limit of the system",
    "comfy_gateway_process_virtual_memory_bytes": "grows only when the allocator asks the system for more",
    "comfy_backend_device_memory_total_bytes": "what the machine has",
    "comfy_backend_weights_copies": "no node of the embedded engine writes to weights; tests/backend/overlay",
    "comfy_backend_weights_writes": "the same",
    "comfy_backend_weights_loads_avoided": "its lanes share none: its one model is tiny; tests/backend/overlay",
}
"""Families that a run without a GPU and without ComfyUI cannot be sure to move, and why."""

SPOKEN_OF = [*sorted((ROOT / "deploy").rglob("*.yml")), ROOT / "deploy/grafana/dashboard.json"]
NAMED = re.compile(r"(?<![\w:])comfy_(?:gateway|backend)_\w+")
LIMIT = 90.0


class Scrapes:
    """Every sample of many scrapes: what it was first, and whether it has moved since."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.names: set[str] = set()
        self.families: set[str] = set()
        self.moved: set[str] = set()
        self.begun = False

    def add(self, text: str) -> dict[str, float]:
        """One scrape; the sums of its samples by name."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            self.families.add(family.name)
            for sample in family.samples:
                self.names.add(sample.name)
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
                key = (sample.name, tuple(sorted(sample.labels.items())))
                # What comes later with labels of its own begins at nothing.
                before = self.first.setdefault(key, 0.0 if self.begun else sample.value)
                up_only = family.type != "gauge"
                if sample.value > before if up_only else sample.value != before:
                    self.moved.add(family.name)
        self.begun = True
        return sums


class Run:
    """A product and what its metrics showed."""

    def __init__(self, product: Product, scrapes: Scrapes) -> None:
        self.product = product
        self.scrapes = scrapes
        self.front, self.gpu0, self.gpu1 = product.ports

    def scrape(self) -> dict[str, float]:
        return self.scrapes.add(self.product.ask(self.front, "/metrics").body.decode())

    def until(self, name: str, holds: Callable[[float], bool]) -> None:
        """Scrape until a metric's sum over its labels is as wanted."""
        wait_until(lambda: holds(self.scrape().get(name, 0.0)), LIMIT, name)

    def order(self, workflow: object, **fields: Any) -> str:
        answer = self.product.post(self.front, "/jobs", {"workflow": workflow, **fields})
        assert answer.status == 202, answer.body
        return str(answer.json()["id"])

    def done(self, workflow: object, **fields: Any) -> dict[str, Any]:
        answer = self.product.post(self.front, "/jobs?wait=90", {"workflow": workflow, **fields})
        found: dict[str, Any] = answer.json()
        return found

    def cancel(self, job: str) -> None:
        assert self.product.ask(self.front, f"/jobs/{job}", method="DELETE").status in {200, 202}

    def state(self, job: str) -> str:
        return str(self.product.ask(self.front, f"/jobs/{job}").json()["state"])


def misbehaving(name: str, **inputs: object) -> dict[str, Any]:
    """A workflow whose one step is a testing node."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 5}},
        "2": {"class_type": name, "inputs": {"value": ["1", 0], **inputs}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def jobs_of_every_kind(run: Run) -> str:
    """Succeeded, foretold, from the cache, failed, canceled, with a webhook; the id of one that ran out of memory."""
    for color in range(4):
        assert run.done(sleeping(0.05, color))["state"] == "succeeded"
    for _ in range(2):
        assert run.done(tiny(9), gpu=0)["state"] == "succeeded"
    for gpu in (0, 1):
        assert run.done(painting(gpu, "metrics", steps=20), gpu=gpu)["state"] == "succeeded"
    saved = run.done(misbehaving("TestOutOfMemory", count=1), gpu=1)
    assert saved["state"] == "succeeded"
    assert run.done(misbehaving("TestFail", exit_thread=False), gpu=1)["state"] == "failed"
    stopped = run.order(sleeping(300.0, 50), gpu=1)
    wait_until(lambda: run.state(stopped) == "running", LIMIT, "it runs")
    run.cancel(stopped)
    (closed,) = pick_ports(1)
    run.done(tiny(10), webhook=f"http://127.0.0.1:{closed}/hook")
    run.until("comfy_gateway_webhooks_total", lambda value: value > 0)
    return str(saved["id"])


def memory_is_taken_and_given_back(run: Run) -> None:
    """Models freed, and loaded ahead of any job."""
    free = {"unload_models": True, "free_memory": True}
    for port in (run.gpu0, run.gpu1):
        assert run.product.post(port, "/free", free).status == 200
        assert run.product.post(port, "/prompt", {"prompt": tiny(11)}).status == 200
    run.until("comfy_backend_model_unloads_total", lambda value: value > 0)
    run.until("comfy_backend_weights_evictions_total", lambda value: value > 0)
    wanted = {"models": [{"type": "checkpoints", "name": "tiny.safetensors"}]}
    answer = run.product.post(run.gpu0, "/preload", wanted)
    assert answer.status == 200, answer.body


def requests_of_every_kind(run: Run) -> None:
    """A limit met, an answer from the cache, a bridge, a request that takes its time."""
    upload = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nx\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    statuses = [
        run.product.ask(run.gpu0, "/upload/image", method="POST", body=upload, headers=kind).status for _ in range(2)
    ]
    assert statuses[1] == 429
    for _ in range(2):
        assert run.product.ask(run.gpu0, "/object_info").status == 200
    bridge = websocket.create_connection(f"ws://127.0.0.1:{run.gpu0}/ws?clientId=metrics", timeout=60)
    try:
        bridge.send(json.dumps({"type": "feature_flags", "data": {}}))
        assert bridge.recv()
        run.until("comfy_gateway_bridges_open", lambda value: value > 0)
    finally:
        bridge.close()
    slow = http.client.HTTPConnection("127.0.0.1", run.front, timeout=100)
    body = json.dumps({"workflow": sleeping(300.0, 60), "prompt_id": "slow"})
    slow.request("POST", "/jobs?wait=90", body)
    run.until("comfy_gateway_in_flight_requests", lambda value: value > 1)
    wait_until(lambda: run.product.ask(run.front, "/jobs/slow").status == 200, LIMIT)
    run.cancel("slow")
    assert slow.getresponse().status == 200
    slow.close()


def more_than_there_is_room_for(run: Run) -> None:
    """Jobs that wait on lanes and in the front door's line."""
    jobs = [run.order(sleeping(300.0, 100 + number), gpu=0) for number in range(3)]
    jobs += [run.order(sleeping(300.0, 200 + number)) for number in range(6)]
    run.until("comfy_gateway_line_jobs", lambda value: value > 0)
    run.until("comfy_backend_jobs_pending", lambda value: value > 0)
    run.until("comfy_backend_jobs_running", lambda value: value > 0)
    for job in reversed(jobs):
        run.cancel(job)
    run.until("comfy_gateway_line_jobs", lambda value: value == 0)
    run.until("comfy_backend_jobs_running", lambda value: value == 0)


def the_journal_cannot_be_written(run: Run) -> None:
    """Somebody else holds its file."""
    journal = run.product.folder / "data/jobs/jobs.sqlite3"
    holder = sqlite3.connect(journal, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        assert run.product.post(run.front, "/jobs", {"workflow": tiny(12)}).status >= 500
    finally:
        holder.close()
    run.until("comfy_gateway_journal_errors_total", lambda value: value > 0)


def a_lane_breaks_and_the_backend_dies(run: Run) -> None:
    """A broken device is seen as long as the other lane works; then all of it is killed, and its job taken up again."""
    running = run.order(sleeping(300.0, 300), gpu=0)
    wait_until(lambda: run.state(running) == "running", LIMIT, "it runs")
    run.order(misbehaving("TestFault"), gpu=1)
    run.until("comfy_backend_lane_faulted", lambda value: value > 0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.product.backend_pid(), signal.SIGKILL)
    run.until("comfy_gateway_backend_up", lambda value: value == 0)
    run.until("comfy_gateway_backend_up", lambda value: value == 1)
    run.until("comfy_gateway_jobs_recovered_total", lambda value: value > 0)
    run.cancel(running)


def breaks_off(connection: socket.socket) -> None:
    """A backend's connection that answers once and ends when it is asked again."""
    asked = b""
    with connection:
        while b"\r\n\r\n" not in asked and (data := connection.recv(65536)):
            asked += data
        if asked:
            body = b'{"exec_info": {"queue_remaining": 0}}'
            kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
            connection.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (kind, body))
            connection.recv(1)


@contextlib.contextmanager
def breaking_backend() -> Iterator[str]:
    """Where a backend is all of whose connections break off."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=breaks_off, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def a_gateway_with_a_lock(folder: Path, scrapes: Scrapes) -> None:
    """With keys and a certificate that is renewed, before a backend that breaks off."""
    folder.mkdir()
    _, key = command.add(folder / "data" / "auth", "chief", Scope.ADMIN, Quota())[::-1]
    tls = made(folder, "cert", 10)
    settings = f'{GENEROUS}[tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n[auth]\nloopback = false\n'
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(port: int, target: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    with breaking_backend() as url:
        product = Product(folder, gpus=1, behind=url, arguments=("--no-backend",), settings=settings)
        try:
            front, port = product.start().ready().ports
            bearer = {"Authorization": f"Bearer {key}"}
            locked = Scrapes()
            locked.add(ask(front, "/metrics", **bearer)[1])
            assert ask(port, "/history")[0] == 401
            for _ in range(2):
                assert ask(port, "/history", **bearer)[0] == 200
            made(folder, "cert", 20)
            renewed = "comfy_gateway_certificate_not_after_seconds"
            wanted = {renewed, "comfy_gateway_backend_retries"}

            def seen() -> bool:
                locked.add(ask(front, "/metrics", **bearer)[1])
                return wanted <= locked.moved

            wait_until(seen, LIMIT, f"{wanted}")
            assert any('status="401"' in str(key) or ("status", "401") in key[1] for key in locked.first)
        finally:
            product.end()
    scrapes.moved |= wanted
    scrapes.families |= locked.families
    scrapes.names |= locked.names


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scrapes, str, str]:
    """Everything done once: what the metrics showed, the log, and the id of a job that ran out of memory."""
    folder = tmp_path_factory.mktemp("metrics")
    limited = GENEROUS + (
        "[rate.upload]\nrate = 0.01\nburst = 0\n[log]\nformat = \"json\"\n"
        '[webhooks]\nallow = ["127.0.0.0/8"]\nattempts = 1\n'
    )
    product = Product(folder, gpus=2, settings=limited)
    run = Run(product, Scrapes())
    try:
        product.start().ready()
        run.scrape()
        saved = jobs_of_every_kind(run)
        memory_is_taken_and_given_back(run)
        requests_of_every_kind(run)
        more_than_there_is_room_for(run)
        the_journal_cannot_be_written(run)
        a_lane_breaks_and_the_backend_dies(run)
        run.scrape()
        assert product.stop() == 0, product.log()
    finally:
        product.end()
    a_gateway_with_a_lock(folder / "locked", run.scrapes)
    return run.scrapes, product.log(), saved


def test_every_metric_that_is_exposed_moves(worked: tuple[Scrapes, str, str]):
    """A metric that nothing moves would be a figure that nobody has ever seen change."""
    scrapes, _, _ = worked
    assert len(scrapes.families) > 50
    assert set(STAND_STILL) <= scrapes.families
    assert scrapes.families - scrapes.moved - set(STAND_STILL) == set()


def test_every_metric_that_is_spoken_of_is_exposed(worked: tuple[Scrapes, str, str]):
    """In rules, their tests, the board and the documents; and the documents name every one that there is."""
    scrapes, _, _ = worked
    texts = {file: file.read_text(encoding="utf-8") for file in [*SPOKEN_OF, *sorted((ROOT / "docs").glob("*.md"))]}
    for file, text in texts.items():
        assert set(NAMED.findall(text)) - scrapes.names == set(), file
    plain = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in scrapes.names}
    table = texts[ROOT / "docs" / "operations.md"].partition("## Metrics\n")[2].partition("\n## ")[0]
    documented = {f"comfy_{side}_{name}" for side in ("gateway", "backend") for name in re.findall(r"`(\w+)`", table)}
    assert {name for name in plain if "_process_" not in name} - documented == set()


def test_the_backends_lines_of_a_job_carry_its_id(worked: tuple[Scrapes, str, str]):
    """As a field of the JSON log, with the lane that it ran on."""
    _, log, saved = worked
    lines = [json.loads(line) for line in log.splitlines()]
    (told,) = [line for line in lines if line["logger"] == "backend" and "memory freed" in line["message"]]
    assert (told["prompt_id"], told["lane"]) == (saved, 1)
    assert not told["message"].startswith("[")


def test_a_jobs_events_name_the_request_that_brought_it(worked: tuple[Scrapes, str, str]):
    """From the access line to the job's, and back; each of its states has a line with its times."""
    _, log, saved = worked
    lines = [json.loads(line) for line in log.splitlines()]
    told = [line for line in lines if line["logger"] == "gateway.jobs.log" and line["prompt_id"] == saved]
    assert [told[0]["state"], told[-1]["state"]] == ["queued", "succeeded"]
    assert told[-1]["ran_seconds"] >= 0
    (access,) = [line for line in lines if line.get("request_id") == told[0]["request_id"] and "path" in line]
    assert (access["method"], access["path"].partition("?")[0], access["status"]) == ("POST", "/jobs", 200)
