"""The main job: a workflow goes in on any port and a picture comes out, on all GPUs at once."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.doubles.product import ROOT, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import wait_until

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(params=["single", "per_gpu"])
def product(request: pytest.FixtureRequest) -> Product:
    """One backend process with four lanes, and one for each GPU: clients see no difference."""
    found: Product = request.getfixturevalue(request.param)
    return found


def readme_lines() -> str:
    """The commands of the README's chapter, as a reader would copy them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    chapter = re.search(r"## Send a workflow, get a picture\n(.*?)\n## ", text, re.DOTALL)
    assert chapter is not None
    return "\n".join(line[4:] for line in chapter[1].splitlines() if line.startswith("    "))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("gpu", [0, 1, 2, 3])
def test_the_readmes_lines_produce_a_picture_on_each_port(product: Product, tmp_path: Path, gpu: int):
    """Copied as they stand, but for the port: the answer names the GPU, and a PNG lies in the folder."""
    front, *ports = product.ports
    script = readme_lines().replace(":8182", f":{ports[gpu]}").replace(":8180", f":{front}")
    script = script.replace(".venv/bin/python", sys.executable)
    script = script.replace(".venv/bin/comfy-gateway", f"{sys.executable} -m gateway")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, "COMFY_GATEWAY_URL": f"http://127.0.0.1:{front}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf'"gpu_id": *{gpu}\b', done.stderr), done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)
    assert '"queue_running"' in done.stdout
    assert "execution_success" in done.stdout


def test_models_are_loaded_ahead_through_every_door(product: Product):
    """At the front door on the GPUs of the body, on a port and behind a prefix on that GPU; a wrong one is told."""
    front, *ports = product.ports
    asked = {"models": [{"type": "checkpoints", "name": "tiny.safetensors"}]}
    answer = product.post(front, "/preload", {**asked, "gpus": [1, 3]})
    assert answer.status == 200, answer
    assert [each["gpu_id"] for each in answer.json()["preloaded"]] == [1, 3]
    for port, path in ((ports[2], "/preload"), (front, "/gpu2/api/preload")):
        answer = product.post(port, path, asked)
        assert [each["gpu_id"] for each in answer.json()["preloaded"]] == [2]
    assert product.post(ports[0], "/preload", {**asked, "gpus": [1]}).status == 400
    held = product.ask(front, "/system_stats").json()["weights"]
    assert [entry["preloads"] > 0 for entry in held][1:] == [True, True, True]


def test_four_jobs_at_once_overlap_in_time(product: Product):
    """One job on each port: at some moment all four run, each on the GPU of its port."""
    front, *ports = product.ports
    answers = [product.post(port, "/prompt", {"prompt": sleeping(2.0, color=gpu)}) for gpu, port in enumerate(ports)]
    assert [answer.status for answer in answers] == [200] * 4, answers
    assert [answer.json()["gpu_id"] for answer in answers] == [0, 1, 2, 3]

    def running() -> list[int]:
        return [queue["running_count"] for queue in product.ask(front, "/queue/all").json()["queues"]]

    wait_until(lambda: running() == [1, 1, 1, 1], 20, "four jobs running at one moment")
    wait_until(lambda: running() == [0, 0, 0, 0], 20, "all four done")


def test_the_front_door_spreads_a_burst_and_keeps_the_rest(product: Product):
    """Twenty submissions at one moment: no GPU has more than two at any time, the others wait, and all end."""
    front = product.ports[0]
    bodies = [{"prompt": sleeping(0.4, color=1000 + n)} for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: product.post(front, "/prompt", body), bodies))
    assert [answer.status for answer in answers] == [200] * 20
    gpus = Counter(answer.json()["gpu_id"] for answer in answers)
    assert sum(count for gpu, count in gpus.items() if gpu is not None) >= 4, gpus
    most = 0
    jobs = {answer.json()["prompt_id"] for answer in answers}
    while True:
        queues = product.ask(front, "/queue/all").json()["queues"]
        most = max(most, *(queue["running_count"] + queue["pending_count"] for queue in queues))
        whole = product.ask(front, "/queue").json()
        left = {item[1] for name in ("queue_running", "queue_pending") for item in whole[name]} & jobs
        if not left:
            break
    assert most <= 2
    for job in jobs:
        wait_until(lambda job=job: job in product.ask(front, f"/history/{job}").json(), 30, job)
        assert product.ask(front, f"/history/{job}").json()[job]["status"]["status_str"] == "success"


def test_a_waiting_job_that_is_interrupted_has_a_history_and_a_deleted_one_has_none(product: Product):
    """Whoever polls the history of a job that was stopped before it ran is told so; a queue's delete leaves nothing."""
    port = product.ports[1]
    ids = [
        product.post(port, "/prompt", {"prompt": sleeping(30.0 if n == 0 else 1.0, color=5000 + n)}).json()["prompt_id"]
        for n in range(3)
    ]
    assert product.post(port, "/interrupt", {"prompt_id": ids[1]}).status == 200
    assert product.post(port, "/queue", {"delete": [ids[2]]}).status == 200
    wait_until(lambda: ids[1] in product.ask(port, f"/history/{ids[1]}").json(), 20, "the stopped job's history")
    status = product.ask(port, f"/history/{ids[1]}").json()[ids[1]]["status"]
    assert status["status_str"] == "error"
    assert "execution_interrupted" in [name for name, _ in status["messages"]]
    assert product.ask(port, f"/history/{ids[2]}").json() == {}
    running = product.ask(port, "/queue").json()["queue_running"]
    assert [item[1] for item in running] == [ids[0]]
    product.post(port, "/interrupt", {"prompt_id": ids[0]})
    wait_until(lambda: ids[0] in product.ask(port, f"/history/{ids[0]}").json(), 20, "the first one stopped")


def test_a_prefix_of_the_front_door_means_that_gpu(product: Product):
    """/gpu2/prompt is the prompt of GPU 2, whatever the client's own header says."""
    front = product.ports[0]
    body = json.dumps({"prompt": tiny(7)}).encode()
    answer = product.ask(front, "/gpu2/prompt", method="POST", body=body, headers={"X-TARGET-GPU": "0"})
    assert (answer.status, answer.json()["gpu_id"]) == (200, 2)


def test_a_wrong_prompt_is_refused_in_comfyuis_shape(product: Product):
    """400 with error and node_errors, from the backend itself and unchanged."""
    answer = product.post(product.ports[1], "/prompt", {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
    assert answer.status == 400
    assert set(answer.json()) >= {"error", "node_errors"}
    assert set(answer.json()["error"]) >= {"type", "message", "details", "extra_info"}


def test_one_scrape_shows_gateway_and_backend(product: Product):
    """After work on every port the numbers of both sides have moved, and Prometheus' lint is content."""
    front, *ports = product.ports
    before = [product.metric(f'comfy_gateway_requests_total{{gpu="{g}",kind="submit",status="200"}}') for g in range(4)]
    for gpu, port in enumerate(ports):
        assert product.post(port, "/prompt", {"prompt": tiny(gpu + 50)}).status == 200
    wait_until(lambda: product.ask(front, "/queue/all").json()["total_running"] == 0, 20)
    after = [product.metric(f'comfy_gateway_requests_total{{gpu="{g}",kind="submit",status="200"}}') for g in range(4)]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1, 1]
    text = product.ask(front, "/metrics").body
    assert b"comfy_gateway_backend_scrape_ok 1.0\n" in text
    assert b"comfy_gateway_backend_up 1.0\n" in text
    names = re.findall(rb"^# TYPE (\S+) ", text, re.MULTILINE)
    assert len(names) == len(set(names))
    assert [name for name in names if not name.startswith(b"comfy_gateway_")], "nothing of the backend's"
    if shutil.which("promtool"):
        lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")


def test_health_is_quick_and_says_what_the_backend_is(product: Product):
    """The front door's own knowledge: body, number of GPUs, healthy."""
    told = product.ask(product.ports[0], "/health").json()
    assert told["status"] == "healthy"
    assert told["backend"].startswith("embedded ")
    assert told["total_instances"] == 4


def test_many_clients_at_once_each_get_their_own_answer(product: Product):
    """Forty submissions from ten threads over all ports: every id is its own, and every history has its picture."""
    _, *ports = product.ports
    ids: list[tuple[int, str]] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        for turn in range(4):
            port = ports[(number + turn) % 4]
            answer = product.post(port, "/prompt", {"prompt": tiny(number * 10 + turn + 5000)})
            with lock:
                ids.append((port, answer.json()["prompt_id"]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job for _, job in ids}) == 40
    for port, job in ids:
        wait_until(lambda port=port, job=job: job in product.ask(port, f"/history/{job}").json(), 30, job)
        outputs = product.ask(port, f"/history/{job}").json()[job]["outputs"]
        assert outputs["2"]["images"], job
