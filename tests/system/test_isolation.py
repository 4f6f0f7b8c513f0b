"""``[auth] isolate``: two keys on one gateway, each as if the other did not exist, on every native route."""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import websocket

from gateway.auth import command
from gateway.auth.keys import Quota, Scope
from tests.doubles.product import GENEROUS, Answer, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import wait_until


@dataclass
class Tenants:
    """A gateway that confines its keys, and ways to act as each."""

    product: Product
    keys: Mapping[str, str]

    def ask(self, who: str, target: str, method: str = "GET", value: object = None, port: int = 1) -> Answer:
        body = None if value is None else json.dumps(value).encode()
        headers = {"X-API-Key": self.keys[who]}
        return self.product.ask(self.product.ports[port], target, method=method, body=body, headers=headers)

    def submit(self, who: str, prompt: object, client_id: str = "") -> str:
        order: dict[str, Any] = {"prompt": prompt, "client_id": client_id or str(uuid.uuid4())}
        answer = self.ask(who, "/prompt", "POST", order)
        assert answer.status == 200, answer.body
        return str(answer.json()["prompt_id"])

    def entry(self, who: str, job: str) -> dict[str, Any]:
        """The job's entry in the history as this key sees it, once it is there."""
        wait_until(lambda: job in self.ask(who, f"/history/{job}").json(), 60, f"{job} has ended")
        found: dict[str, Any] = self.ask(who, f"/history/{job}").json()[job]
        return found

    def queued(self, who: str) -> set[str]:
        found = self.ask(who, "/queue").json()
        return {item[1] for name in ("queue_running", "queue_pending") for item in found[name]}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """Anna and Ben may submit, the chief sees all; nobody is trusted for being here."""
    folder = tmp_path_factory.mktemp("tenants")
    auth = folder / "data" / "auth"
    keys = {name: command.add(auth, name, Scope.SUBMIT, Quota())[0] for name in ("anna", "ben")}
    keys["chief"] = command.add(auth, "chief", Scope.ADMIN, Quota())[0]
    settings = GENEROUS + "[auth]\nloopback = false\nisolate = true\n"
    one = Product(folder, gpus=1, settings=settings)
    try:
        yield Tenants(one.start().ready(), keys)
        assert "Traceback" not in one.log(), one.log()
    finally:
        one.end()


def test_history_and_files_are_each_keys_own(tenants: Tenants):
    """A finished job and its picture: its owner's and the chief's, on every way to them; nobody else's."""
    job = tenants.submit("anna", tiny(1))
    entry = tenants.entry("anna", job)
    (image,) = next(output["images"] for output in entry["outputs"].values())
    view = f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
    for ways in ("/history", "/api/history", "/history?max_items=5", f"/history/{job}", f"/api/history/{job}"):
        assert job in tenants.ask("anna", ways).json(), ways
        assert job not in tenants.ask("ben", ways).json(), ways
    assert job in tenants.ask("chief", "/history").json()
    for way in (view, "/api" + view, f"/jobs/{job}/outputs/0"):
        port = 0 if way.startswith("/jobs") else 1
        assert tenants.ask("anna", way, port=port).body.startswith(b"\x89PNG"), way
        assert tenants.ask("chief", way, port=port).status == 200, way
        refused = tenants.ask("ben", way, port=port)
        assert refused.status in {403, 404}, way
        assert not refused.body.startswith(b"\x89PNG")
    for spelling in (
        view.replace("filename=", "filename=./"),
        view.replace("&subfolder=", "&subfolder=/"),
        view.replace("&subfolder=", "&subfolder=x/.."),
        f"/view?filename={image['filename']}%20[{image['type']}]",
    ):
        assert tenants.ask("ben", spelling).status in {403, 404}, spelling
    for way in (f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/explain"):
        assert tenants.ask("ben", way, port=0).status == 404, way
    assert tenants.ask("ben", f"/api/jobs/{job}").status == 404
    assert job not in tenants.ask("ben", "/jobs", port=0).body.decode()
    assert job not in tenants.ask("ben", "/api/jobs").body.decode()
    assert job in tenants.ask("anna", "/jobs", port=0).body.decode()


def test_a_name_says_nothing_else_than_its_type(tenants: Tenants):
    """ComfyUI takes ``[output]`` behind a name for its type, and of two fields the first: neither opens Anna's picture.

    Uploads stay everybody's.
    """
    (image,) = next(iter(tenants.entry("anna", tenants.submit("anna", tiny(9)))["outputs"].values()))["images"]
    (his,) = next(iter(tenants.entry("ben", tenants.submit("ben", tiny(10)))["outputs"].values()))["images"]
    hers, own = (f"filename={each['filename']}" for each in (image, his))
    folder, kind = f"subfolder={image['subfolder']}", f"type={image['type']}"
    for query in (
        f"{hers}%20%5B{image['type']}%5D&{folder}&type=input",
        f"{hers}%20[{image['type']}]&type=input",
        f"{hers}%20%5Binput%5D&type=input",
        f"{hers}%20%5Btemp%5D&type=input",
        f"{hers}&{folder}&{kind}&type=input",
        f"{hers}&{folder}&type=&type=input",
        f"{hers}&{folder}&{kind}&{own}",
        f"{own}&{folder}&{kind}&{hers}",
        f"{hers}&subfolder=&subfolder=x&{kind}",
        f"filename=../{image['type']}/{image['filename']}&type=input",
        f"{hers}&subfolder=../{image['type']}&type=input",
        f"{hers}&subfolder=..%5C{image['type']}&type=input",
        f"{hers}&subfolder=/{image['type']}&type=input",
    ):
        for way in (f"/view?{query}", f"/api/view?{query}", f"/%76iew?{query}"):
            assert tenants.ask("ben", way).status == 403, way
    assert tenants.ask("ben", f"/view?{own}&{folder}&{kind}").body.startswith(b"\x89PNG")
    uploaded = tenants.ask("ben", "/view?filename=nothing.png&type=input&subfolder=a/b")
    assert uploaded.status == 404, "it is the backend that says so"


def test_queues_show_and_lose_only_what_is_ones_own(tenants: Tenants):
    """Ben neither sees Anna's waiting and running jobs, nor stops or deletes them by any way; she does."""
    running, waiting = tenants.submit("anna", sleeping(60.0, 2)), tenants.submit("anna", sleeping(60.0, 3))
    mine = tenants.submit("ben", sleeping(60.0, 4))
    wait_until(lambda: tenants.queued("anna") == {running, waiting}, 60, "Anna's")
    assert tenants.queued("ben") == {mine}
    assert tenants.queued("chief") >= {running, waiting, mine}
    for target, value in (
        ("/interrupt", {}),
        ("/interrupt", {"prompt_id": running}),
        ("/api/interrupt", {"prompt_id": running}),
        ("/queue", {"delete": [waiting]}),
        (f"/api/jobs/{running}/cancel", {}),
        ("/api/jobs/cancel", {"job_ids": [running, waiting]}),
    ):
        assert tenants.ask("ben", target, "POST", value).status in {200, 404}, target
    assert tenants.ask("ben", f"/jobs/{running}", "DELETE", port=0).status == 404
    assert tenants.ask("ben", "/queue", "POST", {"clear": True}).status == 200
    wait_until(lambda: tenants.queued("ben") == set(), 60, "his own is cleared")
    assert tenants.queued("anna") == {running, waiting}
    assert tenants.ask("anna", "/queue", "POST", {"clear": True}).status == 200
    assert tenants.ask("anna", "/interrupt", "POST", {}).status == 200
    wait_until(lambda: tenants.queued("anna") == set(), 60, "hers are gone")
    assert tenants.entry("anna", running)["status"]["status_str"] == "error"
    before = set(tenants.ask("anna", "/history").json())
    assert tenants.ask("ben", "/history", "POST", {"clear": True}).status == 200
    assert tenants.ask("ben", "/history", "POST", {"delete": list(before)}).status == 200
    assert set(tenants.ask("anna", "/history").json()) == before
    assert tenants.ask("anna", "/history", "POST", {"clear": True}).status == 200
    assert tenants.ask("anna", "/history").json() == {}


def test_events_reach_their_owner_only(tenants: Tenants):
    """Ben cannot listen as Anna's client, nor submit as it; his own socket hears nothing of her job."""
    url = f"ws://127.0.0.1:{tenants.product.ports[1]}/ws?clientId="
    anna = websocket.create_connection(url + "anna-tab", timeout=60, header={"X-API-Key": tenants.keys["anna"]})
    ben = websocket.create_connection(url + "ben-tab", timeout=60, header={"X-API-Key": tenants.keys["ben"]})
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(url + "anna-tab", timeout=60, header={"X-API-Key": tenants.keys["ben"]})
    order = {"prompt": tiny(5), "client_id": "anna-tab"}
    assert tenants.ask("ben", "/prompt", "POST", order).status == 403
    job = tenants.submit("anna", tiny(6), "anna-tab")
    heard: list[dict[str, Any]] = []

    def told() -> bool:
        data = anna.recv()
        if isinstance(data, str):
            heard.append(json.loads(data))
        return any(each["type"] == "execution_success" for each in heard)

    wait_until(told, 60, "Anna hears the end")
    his = tenants.submit("ben", tiny(7), "ben-tab")
    theirs: list[dict[str, Any]] = []

    def his_end() -> bool:
        data = ben.recv()
        if isinstance(data, str):
            theirs.append(json.loads(data))
        return any(each["type"] == "execution_success" for each in theirs)

    wait_until(his_end, 60, "Ben hears the end of his own")
    assert not any(job in json.dumps(each) for each in theirs)
    assert any(his in json.dumps(each) for each in theirs)
    taken = tenants.ask("ben", "/prompt", "POST", {"prompt": tiny(8), "prompt_id": job})
    assert taken.status == 422
    anna.close()
    ben.close()


def test_what_shows_everybodys_jobs_is_closed(tenants: Tenants):
    """Lists that cannot be filtered are the chief's."""
    for target, port in (("/queue/all", 0), ("/debug/queues", 0), ("/status", 0), ("/queue/all", 1)):
        assert tenants.ask("ben", target, port=port).status == 403, target
        assert tenants.ask("chief", target, port=port).status == 200, target
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(
            f"ws://127.0.0.1:{tenants.product.ports[1]}/debug/events",
            timeout=60,
            header={"X-API-Key": tenants.keys["ben"]},
        )


def test_jobs_that_name_no_client_are_each_keys_own(tenants: Tenants):
    """Every key may use the jobs API without a client id, and nobody listens to another's under the one it gets."""
    for who in ("chief", "anna", "ben"):
        for target in ("/jobs?wait=60", "/generate"):
            answer = tenants.ask(who, target, "POST", {"workflow": tiny(80)}, port=0)
            assert answer.status < 300, (who, target, answer.body)
    listing = tenants.ask("anna", "/jobs", port=0).json()["jobs"]
    assert {job["client_id"] for job in listing} >= {"api:anna"}
    for taken in ("api", "api:anna", "api:chief"):
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            websocket.create_connection(
                f"ws://127.0.0.1:{tenants.product.ports[1]}/ws?clientId={taken}", timeout=30,
                header=[f"X-API-Key: {tenants.keys['ben']}"])
        assert refused.value.status_code == 403, taken
        assert tenants.ask("ben", "/prompt", "POST", {"prompt": tiny(81), "client_id": taken}).status == 403
