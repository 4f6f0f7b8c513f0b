"""The commands against a running gateway, as a person types them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doubles.product import ROOT, Product
from tests.doubles.prompts import sleeping
from tests.doubles.wait import wait_until


def typed(product: Product, *words: str, data: str = "", key: str = "") -> "subprocess.CompletedProcess[str]":
    """One command, told by the environment where the gateway is."""
    env = {**os.environ, "COMFY_GATEWAY_URL": f"http://127.0.0.1:{product.ports[0]}", "PYTHONPATH": str(ROOT)}
    env |= {"COMFY_GATEWAY_KEY": key} if key else {}
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(command, input=data, env=env, capture_output=True, text=True, check=False, timeout=100)


def test_a_workflow_is_submitted_and_its_picture_saved(product: Product, tmp_path: Path):
    """``submit -o``: the picture lies in the folder and its path is what is printed."""
    done = typed(product, "submit", str(ROOT / "examples" / "txt2img.json"), "--gpu", "1", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert Path(line).read_bytes().startswith(b"\x89PNG")
    assert "running on GPU 1" in done.stderr


def test_jobs_are_seen_and_canceled(product: Product):
    """``submit`` gives the id, ``jobs`` and ``status`` show it, ``cancel`` ends it, and waiting says so."""
    workflow = json.dumps(sleeping(60.0, 77))
    done = typed(product, "submit", "-", "--gpu", "2", data=workflow)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()

    def state() -> str:
        found = json.loads(typed(product, "jobs", "--json", "--limit", "50").stdout)
        return str(next(each["state"] for each in found if each["id"] == job))

    wait_until(lambda: state() == "running", 60, "it runs")
    shown = typed(product, "status")
    assert shown.returncode == 0, shown.stderr
    assert job in shown.stdout
    assert json.loads(typed(product, "status", "--json").stdout)["health"]["status"] == "healthy"
    assert typed(product, "cancel", job).returncode == 0
    wait_until(lambda: state() == "canceled", 60, "it is canceled")
    unknown = typed(product, "cancel", "no-such-job")
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1


def test_a_gpu_is_drained_and_resumed_and_the_backends_lines_are_read(make: Callable[..., Product]):
    """The front door gives a drained GPU nothing; ``logs`` shows what the backend wrote; no such GPU is one line."""
    product = make(gpus=2).start().ready()
    done = typed(product, "drain", "1")
    assert (done.returncode, done.stdout) == (
        0, "GPU 1 draining: The front door gives it no new jobs; nothing left on it.\n",
    )
    assert "draining" in typed(product, "status").stdout
    for color in range(3):
        assert product.post(product.ports[0], "/jobs?wait=60", {"workflow": sleeping(0.01, color)}).json()["gpu"] == 0
    assert "GPU 1 ready" in typed(product, "resume", "1").stdout
    wait_until(lambda: typed(product, "logs").stdout, 60, "lines of the backend")
    assert len(typed(product, "logs", "-n", "1").stdout.splitlines()) == 1
    unknown = typed(product, "drain", "7")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("workflow", "says"),
    [('{"1": {"class_type": "NoSuchNode", "inputs": {}}}', "NoSuchNode"), ("[", "is no JSON"), ("{}", "no workflow")],
)
def test_what_is_wrong_with_a_workflow_is_one_line(product: Product, workflow: str, says: str):
    """The node is named; nothing is printed on stdout; the exit code is 1."""
    done = typed(product, "submit", "-", "--wait", data=workflow)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says.lower() in done.stderr.lower()


def test_a_failed_job_has_its_own_exit_code(make: Callable[..., Product]):
    """4, and the node's own words."""
    failing = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 5}},
        "2": {"class_type": "TestFail", "inputs": {"value": ["1", 0], "exit_thread": False}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    done = typed(make(gpus=1).start().ready(), "submit", "-", "--wait", data=json.dumps(failing))
    assert done.returncode == 4, done.stderr
    assert " failed: " in done.stderr


def test_the_doctor_knows_a_running_gateway(product: Product):
    """Its ports are no problem: it is ours."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gateway", "doctor", "--config", str(product.folder / "config.toml")]
    here = product.folder
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=100, cwd=here)
    assert f"a gateway runs at port {product.ports[0]}" in done.stdout
    assert "ports in use" not in done.stdout


def test_each_key_may_do_what_its_scope_says(make: Callable[..., Product]):
    """Keys made on the command line: one that submits cannot drain, an administrator's can; revoked it is refused."""
    product = make(gpus=2, settings="[auth]\nloopback = false\n")
    config = str(product.folder / "config.toml")
    (product.folder / "config.toml").write_text(product.config(), encoding="utf-8")

    def keys(*words: str) -> str:
        command = [sys.executable, "-m", "gateway", "keys", *words, "--config", config]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=True, timeout=100, cwd=product.folder
        )
        return done.stdout.strip()

    worker, chief = keys("add", "worker"), keys("add", "chief", "--scope", "admin")
    product.start().ready()

    def as_one(key: str, *words: str, data: str = "") -> "subprocess.CompletedProcess[str]":
        return typed(product, *words, data=data, key=key)

    nobody = typed(product, "drain", "1")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)
    assert "--key or COMFY_GATEWAY_KEY" in nobody.stderr
    for words in (("drain", "1"), ("logs",), ("reload",)):
        refused = as_one(worker, *words)
        assert (refused.returncode, refused.stdout) == (1, ""), words
        assert "scope" in refused.stderr, words
    assert "GPU 1 draining" in as_one(chief, "drain", "1").stdout
    for color in range(3):
        done = as_one(worker, "submit", "-", "--wait", data=json.dumps(sleeping(0.01, color)))
        assert done.returncode == 0, done.stderr
    found = json.loads(as_one(worker, "jobs", "--json").stdout)
    assert [each["gpu"] for each in found] == [0, 0, 0]
    assert "draining" in as_one(worker, "status").stdout
    assert "GPU 1 ready" in as_one(chief, "resume", "1").stdout
    assert as_one(chief, "logs").returncode == 0
    keys("revoke", "worker")
    wait_until(lambda: as_one(worker, "jobs").returncode == 1, 60, "the revoked key is refused")
    assert as_one(chief, "jobs").returncode == 0
    assert worker not in product.log()


def test_a_bench_asks_both_and_submits_nothing(product: Product):
    """A line for each way and the difference; what is more than the limit on reads is said."""
    config = ("--config", str(product.folder / "config.toml"))
    before = product.metric('comfy_gateway_requests_total{gpu="1",kind="submit",status="200"}')
    done = typed(product, "bench", "--gpu", "1", "--requests", "20", *config)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines()] == [
        "through the gateway", "the backend itself", "the gateway adds",
    ]
    assert product.metric('comfy_gateway_requests_total{gpu="1",kind="submit",status="200"}') == before
    wrong = typed(product, "bench", "--gpu", "9", *config)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)
