"""Several backends behind one gateway, as processes: one per GPU, and tables of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websockets.sync.client
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import pick_run
from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import Prompt, sleeping, tiny
from tests.doubles.wait import alive, wait_until
from tests.system.test_journal import all_succeed, entry, running, submit

Make = Callable[..., Product]


def saved(color: int, prefix: str = "same") -> Prompt:
    """A picture in the output folder, under a prefix that all of them share."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": ["1", 0]}},
    }


def test_auto_goes_by_what_the_last_run_measured(make: Make):
    """One process for each GPU where one was too few, and who asks is told why; plain words in log and `status`."""
    product = make(gpus=2, mode="auto", settings=GENEROUS)
    note = product.folder / "data/jobs/issuing.json"
    note.parent.mkdir(parents=True)
    seen = {"mode": "single", "gpus": 2, "busy": 100, "bound": 75, "fine": 0, "memory": 0}
    note.write_text(json.dumps(seen))
    product.start().ready()
    assert len(product.backend_pids()) == 2
    why = product.ask(product.ports[0], "/health").json()["mode"]
    assert why.startswith("one process for each GPU")
    assert "75%" in why
    assert f'mode = "auto": {why}' in product.log()
    told = status(product)
    assert why in told.stdout
    assert product.stop() == 0
    note.write_text(json.dumps({**seen, "mode": "per-gpu", "bound": 0, "fine": 90}))
    product.start().ready()
    assert len(product.backend_pids()) == 1
    assert product.ask(product.ports[0], "/health").json()["mode"].startswith("one process for all GPUs")


def status(product: Product) -> "subprocess.CompletedProcess[str]":
    """What the command prints."""
    command = [sys.executable, "-m", "gateway", "status", "--url", f"http://127.0.0.1:{product.ports[0]}"]
    return subprocess.run(command, cwd=product.folder, capture_output=True, text=True, check=True, timeout=60)


def names(product: Product, job: str) -> list[str]:
    """Files of a job that has ended, as the front door tells."""
    outputs = product.ask(product.ports[0], f"/history/{job}").json()[job]["outputs"]
    return [image["filename"] for output in outputs.values() for image in output.get("images", [])]


def test_one_process_per_gpu_looks_like_one_with_all_of_them(per_gpu: Product):
    """GPU numbers, queues, devices, metrics and history are those of one backend with four lanes."""
    front = per_gpu.ports[0]
    assert len(per_gpu.backend_pids()) == 4
    before = per_gpu.metric('comfy_backend_jobs_total{gpu="3",outcome="success"}')
    jobs = {}
    for gpu in range(4):
        answer = per_gpu.post(per_gpu.ports[1 + gpu], "/prompt", {"prompt": saved(gpu, "look")}).json()
        assert answer["gpu_id"] == gpu
        jobs[answer["prompt_id"]] = gpu
    all_succeed(per_gpu, jobs)
    for port in per_gpu.ports:
        assert [each["gpu_id"] for each in per_gpu.ask(port, "/queue/all").json()["queues"]] == [0, 1, 2, 3]
        assert [each["gpu_id"] for each in per_gpu.ask(port, "/debug/queues").json()["queues"]] == [0, 1, 2, 3]
        assert set(jobs) <= set(per_gpu.ask(port, "/history").json())
    assert [each["gpu_id"] for each in per_gpu.ask(front, "/system_stats").json()["devices"]] == [0, 1, 2, 3]
    assert per_gpu.metric('comfy_backend_jobs_total{gpu="3",outcome="success"}') == before + 1
    text = per_gpu.ask(front, "/metrics").body.decode()
    families = Counter(family.name for family in text_string_to_metric_families(text))
    assert max(families.values()) == 1
    health = per_gpu.ask(front, "/health").json()
    assert (health["status"], health["healthy_instances"]) == ("healthy", 4)
    assert [each["gpus"] for each in health["backends"]] == [[gpu, gpu] for gpu in range(4)]


def test_output_names_are_unique_across_processes_under_load(per_gpu: Product):
    """Four processes save under one prefix at once: every name once, and every file there."""
    jobs: list[str] = []
    lock = threading.Lock()

    def client(gpu: int) -> None:
        for number in range(12):
            job = submit(per_gpu, gpu, saved(1000 * gpu + number))
            with lock:
                jobs.append(job)

    threads = [threading.Thread(target=client, args=(gpu,)) for gpu in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 48
    wait_until(lambda: set(jobs) <= set(per_gpu.ask(per_gpu.ports[0], "/history").json()), 60, "all have ended")
    found = Counter(name for job in jobs for name in names(per_gpu, job))
    assert len(found) == 48
    assert max(found.values()) == 1
    assert {file.name for file in (per_gpu.folder / "data/output").glob("same_*")} == set(found)
    for name in found:
        assert per_gpu.ask(per_gpu.ports[0], f"/view?filename={name}").status == 200


def test_previews_are_found_from_every_port(per_gpu: Product):
    """Each process has a temp folder of its own; the journal knows whose it is."""
    job = submit(per_gpu, 2, tiny(77))
    all_succeed(per_gpu, {job: 2})
    (image,) = (each for output in entry(per_gpu, 2, job)["outputs"].values() for each in output["images"])
    assert image["type"] == "temp"
    target = f"/view?filename={image['filename']}&type=temp&subfolder={image['subfolder']}"
    for port in per_gpu.ports:
        wait_until(lambda port=port: per_gpu.ask(port, target).status == 200, 30, f"found on {port}")


def test_front_door_jobs_use_every_process(per_gpu: Product):
    """As many at once as all GPUs take, none of which ends: each GPU gets some, however fast it is thought to be."""
    front = per_gpu.ports[0]
    loads = [f'comfy_gateway_lane_load{{gpu="{gpu}"}}' for gpu in range(4)]
    wait_until(lambda: not any(map(per_gpu.metric, loads)), 60, "nothing is left of other tests")
    prompts = [sleeping(600.0, 500 + each) for each in range(8)]
    jobs = [per_gpu.post(front, "/prompt", {"prompt": each}).json()["prompt_id"] for each in prompts]
    try:
        wait_until(lambda: all(map(per_gpu.metric, loads)), 60, "every GPU has some")
    finally:
        for job in jobs:
            per_gpu.post(front, "/interrupt", {"prompt_id": job})
        wait_until(lambda: not any(map(per_gpu.metric, loads)), 60, "all have ended")


def test_a_front_door_client_hears_its_jobs_on_every_process(per_gpu: Product):
    """One socket, four jobs on four processes: each from its start to its end, and then nothing is left."""
    front = per_gpu.ports[0]
    with websockets.sync.client.connect(f"ws://127.0.0.1:{front}/ws?clientId=everywhere") as socket:
        prompts = [sleeping(0.3, 600 + each) for each in range(8)]
        answers = [per_gpu.post(front, "/prompt", {"prompt": each, "client_id": "everywhere"}) for each in prompts]
        jobs = {answer.json()["prompt_id"] for answer in answers}
        begun, ended, left = set(), set(), -1
        while ended < jobs or left:
            message = socket.recv(timeout=60)
            if isinstance(message, bytes):
                continue
            event = json.loads(message)
            data = event["data"]
            if event["type"] == "execution_start":
                begun.add(data["prompt_id"])
            elif event["type"] == "executing" and data["node"] is None:
                assert data["prompt_id"] in begun
                ended.add(data["prompt_id"])
            elif event["type"] == "status":
                left = data["status"]["exec_info"]["queue_remaining"]
        assert begun == ended == jobs
    assert len({answer.json()["gpu_id"] for answer in answers}) > 1


def test_one_process_dies_and_the_others_go_on(make: Make):
    """Its own job is run again when it is back; what ran beside it never stopped."""
    product = make(gpus=2, settings=GENEROUS, mode="per-gpu").start().ready()
    stays = submit(product, 1, sleeping(3.0, 1))
    dies = submit(product, 0, sleeping(3.0, 2))
    wait_until(lambda: running(product, 0) == 1 and running(product, 1) == 1, 30, "both run")
    first, second = product.backend_pids()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: product.ask(product.ports[1], "/object_info").status == 503, 30, "GPU 0 is away")
    assert product.ask(product.ports[2], "/object_info").status == 200
    assert product.ask(product.ports[0], "/object_info").status == 200
    health = product.ask(product.ports[0], "/health")
    assert (health.status, health.json()["status"]) == (200, "degraded")
    all_succeed(product, {stays: 1, dies: 0})
    assert product.backend_pids()[1] == second
    assert product.backend_pids()[0] != first
    history: dict[str, Any] = product.ask(product.ports[0], "/history").json()
    assert set(history) == {stays, dies}


def test_the_gateway_is_killed_and_finds_every_process_again(make: Make):
    """None is started twice; jobs go on."""
    product = make(gpus=2, settings=GENEROUS, mode="per-gpu").start().ready()
    jobs = {submit(product, gpu, sleeping(2.0, gpu)): gpu for gpu in range(2)}
    wait_until(lambda: running(product, 0) == 1 and running(product, 1) == 1, 30, "both run")
    pids = product.backend_pids()
    product.process.kill()
    product.process.wait()
    product.start().ready()
    assert product.backend_pids() == pids
    all_succeed(product, jobs)


def test_processes_that_are_no_longer_wanted_are_ended(make: Make):
    """Another start with one backend in place of two: what the last gateway left is not in its way."""
    product = make(gpus=2, settings=GENEROUS, mode="per-gpu").start().ready()
    pids = product.backend_pids()
    assert len(pids) == 2
    product.process.kill()
    product.process.wait()
    product.mode = "single"
    product.start().ready()
    wait_until(lambda: not any(map(alive, pids)), 30, "both have ended")
    assert product.ask(product.ports[2], "/object_info").status == 200


def test_backends_with_tables_of_their_own(make: Make, tmp_path: Path):
    """Two lanes here, one there: numbers count through, and each has its own folders."""
    product = make(gpus=3)
    other = pick_run(1, [*product.ports, product.backend_port])
    product.settings = (
        f'{GENEROUS}[[backend]]\nurl = "http://127.0.0.1:{product.backend_port}"\nlanes = 2\n'
        f'[[backend]]\nurl = "http://127.0.0.1:{other}"\ndata = "other"\n'
    )
    product.whole = True
    product.start().ready()
    jobs = {submit(product, gpu, saved(gpu)): gpu for gpu in range(3)}
    all_succeed(product, jobs)
    assert sorted(file.name for file in (product.folder / "other/output").iterdir()) == ["same_00001_.png"]
    assert len(list((product.folder / "data/output").iterdir())) == 2
    health = product.ask(product.ports[0], "/health").json()
    assert [each["gpus"] for each in health["backends"]] == [[0, 1], [2, 2]]
    for job, gpu in jobs.items():
        (name,) = names(product, job)
        answer = product.ask(product.ports[0], f"/view?filename={name}")
        assert answer.status == 200, (gpu, name)
