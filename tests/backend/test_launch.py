"""The backend as a process: starts, refuses, stops, and does not outlive its parent."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gateway
from backend.contract import EXIT_DEVICE_FAULT, EXIT_OK, EXIT_PORT_IN_USE, EXIT_USAGE
from backend.embedded.start import VERSION
from tests.contract.client import picture, sampled, sleeper
from tests.doubles.backend_process import BackendProcess
from tests.doubles.wait import wait_until

Start = Callable[..., BackendProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts backends with two lanes that are gone afterwards."""
    made: list[BackendProcess] = []

    def begin(*arguments: str) -> BackendProcess:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(BackendProcess(folder, ["--gpus", "2", "--testing-nodes", *arguments]))
        return made[-1].start()

    yield begin
    for each in made:
        each.end()


def ask(url: str, body: object = None, gpu: int | None = None) -> Any:
    """One HTTP exchange; the JSON answer or the text."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if gpu is None else {"X-TARGET-GPU": str(gpu)}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith(("{", "[")) else text


def submit(url: str, prompt: object, gpu: int = 0) -> str:
    found: str = ask(f"{url}/prompt", {"prompt": prompt}, gpu)["prompt_id"]
    return found


def ended(url: str, prompt_id: str) -> dict[str, Any]:
    """The job's status, once it has one."""
    wait_until(lambda: ask(f"{url}/history/{prompt_id}"), 60, f"end of {prompt_id}")
    found: dict[str, Any] = ask(f"{url}/history/{prompt_id}")[prompt_id]["status"]
    return found


def running(url: str) -> int:
    found: int = ask(f"{url}/queue/all")["total_running"]
    return found


def test_the_ready_line(start: Start):
    """It names the address, the body, a device per lane and the process; stdout holds nothing else."""
    backend = start()
    ready = backend.wait_ready()
    assert ready["body"] == f"embedded {VERSION}"
    assert gateway.__version__ == VERSION
    assert ready["devices"] == ["cpu", "cpu"]
    assert ready["pid"] == backend.process.pid
    assert ask(ready["url"] + "/prompt") == {"exec_info": {"queue_remaining": 0}}
    assert backend.stdout.read_text().count("\n") == 1
    assert "Name one with --comfyui" in backend.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_while_jobs_run(start: Start, number: signal.Signals):
    """Told to stop during jobs on every lane it ends with 0; jobs and an open connection do not hold it."""
    backend = start()
    url = backend.url
    for gpu in (0, 1):
        submit(url, sleeper(60, naps=1), gpu)
    wait_until(lambda: running(url) == 2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as idle:
        idle.sendall(b"GET /prompt HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(12).startswith(b"HTTP/1.1 200")
        backend.process.send_signal(number)
        assert backend.process.wait(30) == EXIT_OK


def test_it_stops_while_it_starts(start: Start, tmp_path: Path):
    """Told to stop while torch is loaded, or during a warm-up workflow, it ends with 0 and no traceback."""
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(sleeper(60)))
    early, late = start(), start("--warmup", str(path))
    wait_until(lambda: "embedded engine starts" in early.log())
    assert early.stop() == EXIT_OK
    wait_until(lambda: list((late.folder / "data").glob("models/checkpoints/*.safetensors")), 30)
    assert late.stop() == EXIT_OK
    assert "Traceback" not in early.log() + late.log()
    assert late.stdout.read_text() == ""


def test_a_busy_port_is_one_clear_line(start: Start):
    """It names the port and ends at once with its own code, before torch is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        backend = start("--port", str(port))
        assert backend.process.wait(60) == EXIT_PORT_IN_USE
    assert [line for line in backend.log().splitlines() if f"port {port}" in line]
    assert "Traceback" not in backend.log()


def test_it_does_not_outlive_its_parent(tmp_path: Path):
    """With --exit-with-parent the port is free again soon after the parent was killed."""
    command = [
        sys.executable, "-m", "backend.launch", "--port", "0", "--cpu", "--gpus", "1", "--data", str(tmp_path / "data"),
        "--exit-with-parent",
    ]  # fmt: skip
    script = f"import subprocess; subprocess.run({command!r}, stdout=open({str(tmp_path / 'out')!r}, 'w'))"
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "COMFYUI_DIR": ""}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
    out = tmp_path / "out"
    wait_until(lambda: out.exists() and "\n" in out.read_text(), 60, "ready line")
    pid = json.loads(out.read_text().split(" ", 1)[1])["pid"]
    parent.kill()
    parent.wait()

    def gone() -> bool:
        # Nobody here can wait for a grandchild: it is gone, or a zombie that init has not collected.
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(gone, 20, "the backend's end")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackendProcess]:
    """A backend for tests that leave it as it was."""
    backend = BackendProcess(tmp_path_factory.mktemp("shared"), ["--gpus", "2", "--testing-nodes"]).start()
    yield backend
    backend.end()


def test_worker_threads_outlive_whatever_nodes_raise(shared: BackendProcess):
    """An error, and even what ends a careless thread, ends the job alone; three in a row renew the executor."""
    backend = shared
    for exit_thread in (True, False, True, False):
        prompt = picture()
        prompt["3"] = {"class_type": "TestFail", "inputs": {"value": ["1", 0], "exit_thread": exit_thread}}
        prompt["2"]["inputs"]["images"] = ["3", 0]
        status = ended(backend.url, submit(backend.url, prompt))
        assert (status["status_str"], status["messages"][-1][0]) == ("error", "execution_error")
    assert ended(backend.url, submit(backend.url, picture()))["completed"] is True
    assert "new executor" in backend.log()
    ask(f"{backend.url}/free", {"unload_models": True, "free_memory": True})
    assert ended(backend.url, submit(backend.url, picture()))["completed"] is True


def test_out_of_memory_is_retried_once_and_counted(shared: BackendProcess):
    """The lane's memory is freed and the job runs again; a picture saved before is not saved twice."""
    backend = shared

    def short_of_memory(count: int) -> dict[str, Any]:
        prompt = {**sampled("tiny.safetensors", 1, steps=1, size=16), **picture("early")}
        prompt["20"] = {"class_type": "TestOutOfMemory", "inputs": {"value": ["8", 0], "count": count}}
        prompt["9"]["inputs"]["images"] = ["20", 0]
        return prompt

    first = submit(backend.url, short_of_memory(1), 1)
    assert ended(backend.url, first)["completed"] is True
    outputs = ask(f"{backend.url}/history/{first}")[first]["outputs"]
    assert set(outputs) == {"2", "9"}
    assert len(list((backend.folder / "data" / "output").glob("early_*"))) == 1
    second = ended(backend.url, submit(backend.url, short_of_memory(2), 1))
    assert second["messages"][-1][1]["exception_type"] == "torch.OutOfMemoryError"
    assert [message[0] for message in second["messages"]].count("execution_start") == 1
    text = ask(f"{backend.url}/metrics").splitlines()
    assert 'comfy_backend_oom_total{gpu="1",recovered="true"} 1.0' in text
    assert 'comfy_backend_oom_total{gpu="1",recovered="false"} 1.0' in text
    assert 'comfy_backend_oom_total{gpu="0",recovered="true"} 0.0' in text
    unloads = next(line for line in text if line.startswith('comfy_backend_model_unloads_total{gpu="1"}'))
    assert float(unloads.split()[1]) >= 2


def test_a_broken_device_ends_the_process(start: Start):
    """Its job ends with an error that is still told; the exit code asks for a new process."""
    backend = start()
    prompt = picture()
    prompt["3"] = {"class_type": "TestFault", "inputs": {"value": ["1", 0]}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    submit(backend.url, prompt, 1)
    assert backend.process.wait(60) == EXIT_DEVICE_FAULT
    assert "is broken" in backend.log()


def test_a_warm_up_workflow_runs_on_every_lane_before_ready(start: Start, tmp_path: Path):
    """Its pictures are there when the ready line is; it is in no history."""
    path = tmp_path / "warm.json"
    path.write_text(json.dumps({"prompt": picture("warm")}))
    backend = start("--warmup", str(path))
    url = backend.url
    assert len(list((backend.folder / "data" / "output").glob("warm_*"))) == 2
    assert ask(f"{url}/history") == {}


def test_a_warm_up_workflow_that_cannot_run(start: Start, tmp_path: Path):
    """It is refused at start with a line that names the file."""
    path = tmp_path / "warm.json"
    path.write_text('{"prompt": {"1": {"class_type": "NoSuchNode"}}}')
    backend = start("--warmup", str(path))
    assert backend.process.wait(60) == EXIT_USAGE
    assert str(path) in backend.log()
