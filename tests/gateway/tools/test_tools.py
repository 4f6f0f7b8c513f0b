"""The commands' tables, their errors, completion, and what the doctor sees."""

import argparse
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import Config
from gateway.tools.bench import told as told_bench
from gateway.tools.commands import _workflow, issuing, submit
from gateway.tools.completion import completion
from gateway.tools.doctor import BAD, OK, WARN, _driver, examine, render
from gateway.tools.door import Door, Reply, ToolError, told
from gateway.tools.tables import bar, job_rows, seconds, status_rows, table

JOB = {
    "id": "a1",
    "state": "running",
    "gpu": 1,
    "client_id": "",
    "created_at": 100.0,
    "started_at": 110.0,
    "ended_at": None,
    "progress": {"node": "3", "value": 5.0, "max": 20.0, "nodes_done": 4, "nodes_total": 7},
}


def test_status_has_a_row_per_gpu_in_order():
    """What runs where, how far it is, and why a GPU takes nothing."""
    told = {
        "data": {
            "instances": {
                "b": {"gpu_id": 1, "running": 1, "pending": 3, "healthy": True, "last_error": None},
                "a": {"gpu_id": 0, "running": 0, "pending": 0, "healthy": False, "last_error": "it broke"},
            }
        }
    }
    rows = status_rows(told, [JOB])
    assert rows[1] == ["0", "it broke", "0", "0", "-", "-"]
    assert rows[2] == ["1", "ready", "1", "3", "a1", "4/7 nodes, step 5/20"]
    lines = table(rows)
    assert len({line.index("4/7") if "4/7" in line else line.index("PROGRESS") for line in (lines[0], lines[2])}) == 1


def test_jobs_are_told_with_their_age_and_how_long_they_ran():
    """Whatever is not known is a dash."""
    waiting = {**JOB, "state": "queued", "gpu": None, "started_at": None, "progress": None, "client_id": "me"}
    rows = job_rows([JOB, waiting], 170.0)
    assert rows[1] == ["a1", "running", "1", "1 min", "1 min", "-"]
    assert rows[2] == ["a1", "queued", "-", "1 min", "-", "me"]


def test_bars_and_durations():
    """A quarter is a quarter; without steps there is none."""
    assert bar(JOB["progress"]).startswith("[########......................]  25%")
    assert bar({"value": None, "max": None, "node": None, "nodes_done": 0, "nodes_total": None}).startswith("[....")
    assert [seconds(each) for each in (0.04, 59.9, 60, 7200, 200_000)] == ["0.0 s", "59.9 s", "1 min", "2 h", "2 d"]


def test_errors_are_one_line_with_the_next_step(capsys: pytest.CaptureFixture[str]):
    """Nobody there, no address, and what the gateway itself says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert main(["status", "--url", f"http://127.0.0.1:{port}"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is `comfy-gateway up` running there?" in said
    with pytest.raises(ToolError, match="no address"):
        Door("localhost:8180")
    error = b'{"error": {"message": "No such\\njob.", "details": "Look at /jobs."}}'
    assert told(Reply(404, {}, error)) == "No such job. Look at /jobs."
    assert told(Reply(502, {}, b"<html>")) == "the gateway answered 502"


def test_a_reload_of_a_wrong_file_says_that_nothing_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whoever is asked for it: the file is wrong here already, with each mistake on the one line."""
    file = tmp_path / "config.toml"
    file.write_text("[limits]\nbdy = 1\nheaders = 0\n", encoding="utf-8")
    assert main(["reload", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "bdy" in said
    assert "headers" in said
    assert said.endswith("; a running gateway keeps the settings that it has\n")
    assert main(["status", "--config", str(file)]) == 1
    assert "keeps" not in capsys.readouterr().err


def test_the_editors_format_is_recognised(tmp_path: Path):
    """The mistake that everybody makes once is named, and the way out."""
    file = tmp_path / "w.json"
    file.write_text('{"nodes": [], "links": []}')
    with pytest.raises(ToolError, match=r"Export \(API\)"):
        _workflow(file)
    file.write_text("{")
    with pytest.raises(ToolError, match="is no JSON"):
        _workflow(file)
    file.write_text('{"prompt": {"1": {}}, "client_id": "x"}')
    assert _workflow(file) == {"1": {}}
    with pytest.raises(ToolError, match="cannot be read"):
        _workflow(tmp_path / "none.json")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_completes():
    """In a real bash: commands, options and choices."""
    script = subprocess.run(
        [sys.executable, "-m", "gateway", "completion", "bash"], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    def words(*typed: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in ("comfy-gateway", *typed))
        code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(typed)}; _comfy_gateway; echo ${{COMPREPLY[@]}}"
        return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())

    assert {"up", "status", "submit", "keys", "doctor"} <= words("")
    assert words("sub") == {"submit"}
    assert words("submit", "--g") == {"--gpu"}
    assert words("keys", "a") == {"add"}
    assert words("completion", "z") == {"zsh"}
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("x")
    assert "bashcompinit" in completion(parser, "zsh")


def test_what_could_not_be_saved_is_not_run(tmp_path: Path):
    """``submit -o`` into what is no folder ends before the gateway is asked, of which there is none here."""
    workflow, there = tmp_path / "workflow.json", tmp_path / "file"
    workflow.write_text('{"1": {"class_type": "X", "inputs": {}}}')
    there.write_text("")
    for folder in (there, there / "below"):
        with pytest.raises(ToolError, match=r"file.* cannot be written: .*nothing was submitted"):
            submit(Door("http://127.0.0.1:9", ""), workflow, gpu=None, wait=False, folder=folder)


def test_the_doctor_names_what_stands_in_the_way(tmp_path: Path):
    """A busy port, a folder that is no ComfyUI, an interpreter without torch: each a problem with a next step."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = Config()
        ports = (server.getsockname()[1],)
        config = replace(
            config,
            listen=replace(config.listen, front_port=0, gpu_ports=ports),
            backend=replace(config.backend, start=False, comfyui=str(tmp_path), python=str(tmp_path / "none")),
        )
        found = list(examine(config, {}))
    bad = [each for each in found if each.level == BAD]
    assert [each.what.split(" ")[0] for each in bad] == ["ports", str(tmp_path), str(tmp_path / "none")]
    assert all(each.advice for each in bad)
    assert render(found)[-1] == "3 problems"


def test_the_doctor_looks_through_custom_nodes_and_asks_torch(tmp_path: Path):
    """A device pin is shown with its place; the version of ComfyUI and torch's devices are told."""
    (tmp_path / "main.py").write_text("")
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    pack = tmp_path / "custom_nodes" / "pinned"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text('import torch\nx = torch.zeros(1).to("cuda:0")\n')
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho \'{"torch": "2.0", "cuda": "12", "devices": [["Card", 25769803776]]}\'\n')
    fake.chmod(0o755)
    config = Config()
    config = replace(
        config,
        listen=replace(config.listen, front_port=0, gpu_ports=(0, 0)),
        backend=replace(config.backend, start=False, comfyui=str(tmp_path), python=str(fake)),
    )
    found = list(examine(config, {}))
    said = {each.what: each.level for each in found}
    untried = next(what for what in said if what.startswith(f"ComfyUI 9.8.7 at {tmp_path} is untried (known: 0.3.64, "))
    assert said[untried] == WARN
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    assert f"ComfyUI 0.33.0 at {tmp_path}" in {each.what for each in examine(config, {}) if each.level == OK}
    assert any("pinned/__init__.py:2" in what and level == WARN for what, level in said.items())
    assert said["cuda:0 Card, 24 GB"] == OK
    assert said["2 GPUs are configured, torch sees 1"] == WARN
    two = replace(config, backend=replace(config.backend, devices=("cuda:0", "cuda:1")))
    assert any("cuda:1" in each.what and each.level == BAD for each in examine(two, {}))


def test_the_doctor_tells_the_driver(tmp_path: Path):
    """As the kernel module says; none is no fault, for the CPU works."""
    file = tmp_path / "version"
    assert (_driver(file).level, _driver(file).what) == (OK, "no NVIDIA driver is loaded")
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert _driver(file).what == "NVIDIA driver 550.54.15"


def test_a_bench_tells_both_ways_and_what_lies_between():
    """In milliseconds; one way alone has nothing to be compared with."""
    lines = list(told_bench([("a", [0.002, 0.003, 0.004]), ("the other", [0.001] * 3)]))
    assert lines[0].startswith("a          median 3.00 ms  p99 ")
    assert lines[1] == "the other  median 1.00 ms  p99 1.00 ms  (3 requests)"
    assert lines[2] == "the gateway adds  median 2.00 ms"
    assert len(list(told_bench([("a", [0.002])]))) == 1


def test_status_tells_what_holds_the_gpus_up():
    """Only when something does; a backend that says nothing of it is fine."""

    class Said(Door):
        def __init__(self, status: int, body: bytes) -> None:
            super().__init__("http://x")
            self.reply = Reply(status, {}, body)

        def ask(self, method: str, target: str, value: object = None) -> Reply:
            return self.reply

    bound = b'{"queues": [], "issuing": {"verdict": "gil-bound", "advice": "use per-gpu"}}'
    assert issuing(Said(200, bound)) == "gil-bound: use per-gpu"
    assert issuing(Said(200, bound.replace(b"gil-bound", b"fine"))) == ""
    assert issuing(Said(200, b'{"queues": []}')) == ""
    assert issuing(Said(404, b"no")) == ""
