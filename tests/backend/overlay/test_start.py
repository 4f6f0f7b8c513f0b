"""The choice between the overlay and ComfyUI as it is, and refusals, as processes."""

import json
import shutil
import sys
from pathlib import Path

import aiohttp
import pytest

from backend.contract import EXIT_PORT_IN_USE, EXIT_USAGE, GPU_HEADER
from backend.options import Options
from backend.overlay.start import plain_arguments
from backend.process import listen
from tests.doubles import identities
from tests.doubles.checkout import FOLDER, Client, Started

LOADED = """
    import sys
    print("LOADED", [name for name in sys.modules if name.startswith("backend.overlay.patches")], flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the ComfyUI-shaped folder, to be changed."""
    copy = tmp_path / "comfyui"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def said(folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and output of a start that must not succeed."""
    started = Started("--gpus", "2", *arguments, comfyui=folder, **env)
    try:
        return started.ended(), "\n".join(started.lines)
    finally:
        started.stop()


async def test_switched_off_nothing_is_patched(folder: Path, tmp_path: Path) -> None:
    """COMFY_MULTI_GPU_SCHED=0: every name of the patch table is the very object that its module's import left there,
    also after a job; the header means nothing, the ready line comes all the same."""
    main = folder / "main.py"
    text = main.read_text(encoding="utf-8")
    script = '\nif __name__ == "__main__":\n'
    main.write_text(text.replace(script, script + LOADED), encoding="utf-8")
    started = Started(comfyui=folder, COMFY_MULTI_GPU_SCHED="0", **identities.watched(tmp_path))
    try:
        ready = started.ready()
        assert "LOADED []" in started.lines
        assert ready["body"] == "comfyui 0.3.64 (plain)"
        async with aiohttp.ClientSession(ready["url"]) as session:
            client = Client(session, 7)
            entry = await client.entry(await client.submit(("Noise", {"seed": 1})))
            assert entry["status"]["status_str"] == "success"
            async with session.get("/queue/all", headers={GPU_HEADER: "x"}) as response:
                assert response.status == 404
        found = identities.look(started.process.pid, tmp_path)
        assert found["other"] == []
        assert set(found["own"]) <= identities.BY_TORCH
        assert {"folder_paths:get_save_image_path", "main:prompt_worker", "server:PromptServer.send_sync",
                "threading:Thread.start", "torch:rand"} <= set(found["same"])
        assert "server:PromptServer.client_id" in found["absent"]  # the overlay adds it
    finally:
        started.stop()


def test_switched_on_every_name_of_the_table_is_another_object(folder: Path, tmp_path: Path) -> None:
    """The same look finds each patch: it can tell the difference."""
    started = Started("--gpus", "2", comfyui=folder, **identities.watched(tmp_path))
    try:
        started.ready()
        found = identities.look(started.process.pid, tmp_path)
        # Weights are not shared here: this folder has no loaders, so that their patches are left out together.
        assert [name for name in found["same"] if not name.startswith("torch.nn.modules.module:Module.")] == []
        assert set(found["own"]) <= identities.BY_TORCH
        assert {"folder_paths:get_save_image_path", "main:prompt_worker", "server:PromptServer.send_sync",
                "threading:Thread.start", "torch:rand", "server:PromptServer.client_id"} <= set(found["other"])
    finally:
        started.stop()


def test_no_comfyui_is_said_at_once(tmp_path: Path) -> None:
    """With the file that it lacks."""
    code, output = said(tmp_path)
    assert code == EXIT_USAGE
    assert "is no ComfyUI: it has no main.py" in output


def test_an_untried_version_is_refused_and_can_be_allowed(folder: Path) -> None:
    """Where all names fit, one word more starts it."""
    (folder / "comfyui_version.py").write_text('__version__ = "0.3.70"\n', encoding="utf-8")
    code, output = said(folder)
    assert code == EXIT_USAGE
    assert "0.3.70 is untried" in output
    assert "allow_unknown" in output
    started = Started("--gpus", "2", "--allow-unknown", comfyui=folder)
    try:
        assert started.ready()["body"] == "comfyui 0.3.70"
    finally:
        started.stop()


def test_a_changed_name_is_refused_even_if_allowed(folder: Path) -> None:
    """The version, the first name that does not fit, and the way out."""
    progress = folder / "comfy_execution" / "progress.py"
    text = progress.read_text(encoding="utf-8")
    progress.write_text(text.replace("def reset_progress_state(prompt_id,", "def reset_progress_state(new, prompt_id,"),
                        encoding="utf-8")
    code, output = said(folder, "--allow-unknown")
    assert code == EXIT_USAGE
    assert "ComfyUI 0.3.64 does not fit: comfy_execution.progress:reset_progress_state" in output
    assert "COMFY_MULTI_GPU_SCHED=0" in output


@pytest.mark.parametrize(
    ("number", "arguments", "says"),
    [
        ("0.20.0", [], "ComfyUI 0.20.0 does not fit: comfy.cli_args: --disable-dynamic-vram is not known"),
        ("0.20.0", ["--disable-dynamic-vram", "--cache-classic"],
         "PromptQueue.task_done: expected parameters (self, item_id, history_result, status, process_item)"),
        ("0.3.64", [], "comfy.model_management:DIRTY_MMAPS: expected no such name before 0.33.0"),
    ],
)
def test_newer_code_is_not_taken_for_an_older_version(
    folder: Path, number: str, arguments: list[str], says: str
) -> None:
    """Code with names of the newest memory manager starts with its arguments or not at all, whatever number it says."""
    (folder / "comfyui_version.py").write_text(f'__version__ = "{number}"\n', encoding="utf-8")
    memory, parser = folder / "comfy/model_management.py", folder / "comfy/cli_args.py"
    memory.write_text(memory.read_text(encoding="utf-8") + "\nDIRTY_MMAPS = set()\n", encoding="utf-8")
    adds = "".join(f"parser.add_argument({word!r}, action='store_true')\n" for word in arguments)
    text = parser.read_text(encoding="utf-8")
    parser.write_text(text.replace("args = parser", f"{adds}args = parser", 1), encoding="utf-8")
    code, output = said(folder, "--allow-unknown")
    assert code == EXIT_USAGE
    assert says in output
    assert "COMFY_MULTI_GPU_SCHED=0" in output


def test_renamed_internals_fail_the_self_test(folder: Path) -> None:
    """Names and parameters fit, yet two lanes share something: it does not start either."""
    graph = folder / "comfy_execution" / "graph_utils.py"
    text = graph.read_text(encoding="utf-8")
    graph.write_text(text.replace("GraphBuilder.alloc_prefix() if prefix is None", "'same.' if prefix is None"),
                     encoding="utf-8")
    code, output = said(folder)
    assert code == EXIT_USAGE
    assert "fails the self-test: prefix" in output


def test_wrong_arguments_of_comfyui_end_the_start(folder: Path) -> None:
    """As its own parser says it, and one device for two lanes as we do."""
    assert said(folder, "--", "--no-such-argument")[0] == EXIT_USAGE
    code, output = said(folder, "--", "--cuda-device", "0")
    assert code == EXIT_USAGE
    assert "leaves one GPU for 2 lanes" in output


@pytest.mark.parametrize("sched", ["1", "0"])
def test_an_interpreter_without_comfyuis_packages_is_one_clear_line(folder: Path, sched: str) -> None:
    """Starting again would not help: the exit code says so, and the line what would."""
    main = folder / "main.py"
    main.write_text("import package_that_nobody_has\n" + main.read_text(encoding="utf-8"), encoding="utf-8")
    code, output = said(folder, COMFY_MULTI_GPU_SCHED=sched)
    assert code == EXIT_USAGE
    assert f"{sys.executable} has no package_that_nobody_has, which ComfyUI needs" in output
    assert "--python" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("words", [("--port", "1234"), ("--listen",)])
def test_comfyui_is_not_told_another_address(folder: Path, words: tuple[str, ...]) -> None:
    """The ready line would name a port where nobody listens."""
    code, output = said(folder, "--", *words)
    assert code == EXIT_USAGE
    assert f"{words[0]} cannot be given to ComfyUI" in output
    assert "[backend] url" in output


def test_a_busy_port_is_one_clear_line(folder: Path) -> None:
    """Found before minutes of loading."""
    with listen("127.0.0.1", 0) as busy:
        port = str(busy.getsockname()[1])
        code, output = said(folder, "--port", port)
    assert code == EXIT_PORT_IN_USE
    assert port in output


async def test_the_warm_up_workflow_runs_on_every_lane_before_ready(tmp_path: Path) -> None:
    """Each lane has run it when the ready line comes, and no history shows it; a bad file is said and stops nothing."""
    workflow = tmp_path / "warm.json"
    workflow.write_text(json.dumps({"1": {"class_type": "Noise", "inputs": {"seed": 1}}}), encoding="utf-8")
    started = Started("--gpus", "2", "--warmup", str(workflow))
    try:
        async with aiohttp.ClientSession(started.ready()["url"]) as session:
            assert await Client(session, None).get("/history") == {}
            async with session.get("/metrics") as response:
                numbers = await response.text()
        for gpu in range(2):
            assert f'comfy_backend_jobs_total{{gpu="{gpu}",outcome="success"}} 1.0' in numbers
    finally:
        started.stop()
    started = Started("--gpus", "2", "--warmup", str(tmp_path / "none.json"))
    try:
        started.ready()
        assert any("cannot be read" in line for line in started.lines)
    finally:
        started.stop()


@pytest.mark.parametrize(
    ("options", "device", "words"),
    [
        (Options(), "cuda:0", []),
        (Options(cpu=True), "cpu", ["--cpu"]),
        (Options(devices=("cpu", "cpu")), "cpu", ["--cpu"]),
        (Options(comfyui_args=("--cpu",)), "cpu", ["--cpu"]),
        (Options(devices=("cuda:0", "cuda:1")), "cuda:0", []),
        (Options(devices=("cuda:2", "cuda:1")), "cuda:2", ["--cuda-device", "2"]),
        (Options(devices=("cuda:2",), comfyui_args=("--cuda-device", "5")), "cuda:2", ["--cuda-device", "5"]),
    ],
)
def test_switched_off_it_runs_on_the_first_device(options: Options, device: str, words: list[str]) -> None:
    """Plain ComfyUI has one: the first that is named, as ComfyUI's own arguments say it."""
    listen = ["--listen", "127.0.0.1", "--port", "8188"]
    assert plain_arguments(options) == (device, [*listen, *words])
