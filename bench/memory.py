"""Memory of one checkpoint on one and on several lanes, with one host copy of the weights and without.

usage: COMFYUI_DIR=/path/to/ComfyUI [COMFYUI_PYTHON=…] python -m bench.memory [--dtype fp32] [--lanes 4] [--models DIR]

Starts the backend on virtual CPU lanes four times (store on and off, one lane and several), runs the same pictures
on every lane and prints what the kernel says of the process: anonymous, file-mapped, shared (weights that were
converted) and peak resident memory, their ratio to one lane, growth, and how long the second lane's load took.
Pictures are compared byte by byte over lanes and runs. Needs no GPU; about 8 GB of free memory for fp32.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.comfyui import stack

MIB = 1024 * 1024
MORE_JOBS = 10
JOB_LIMIT = 600.0
"""Seconds one job may take on a loaded machine."""
CHECKPOINT = "memory_bench.safetensors"
NODE_SECONDS = "comfy_backend_node_seconds_sum"
LOADER = "CheckpointLoaderSimple"


@dataclass(frozen=True)
class Memory:
    """Resident memory of one process in bytes, as the kernel counts it."""

    anonymous: int
    mapped: int
    shared: int
    """Pages of memory files: weights that the store converted, or read from files that cannot be mapped."""
    peak: int

    @property
    def resident(self) -> int:
        return self.anonymous + self.mapped + self.shared

    @classmethod
    def of(cls, pid: int) -> "Memory":
        found = re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        sizes = {name: int(value) * 1024 for name, value in found}
        return cls(sizes["RssAnon"], sizes["RssFile"], sizes["RssShmem"], sizes["VmHWM"])


@dataclass
class Run:
    """What one start of the backend showed."""

    store: bool
    lanes: int
    idle: Memory | None = None
    loaded: Memory | None = None
    """After every lane ran its first job."""
    later: Memory | None = None
    """After ten further jobs."""
    load_seconds: list[float] = field(default_factory=list)
    """The loader node's seconds by lane; lane 0 was the first."""
    pictures: list[str] = field(default_factory=list)


def workflow(seed: int) -> dict[str, Any]:
    """Checkpoint, two prompts, two steps at 64 px, a picture."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node(LOADER, ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a lighthouse at night"),
        "3": node("CLIPTextEncode", clip=["1", 1], text="fog"),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node(
            "KSampler",
            model=["1", 0],
            seed=seed,
            steps=2,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="memory"),
    }


class Backend:
    """The backend under measurement, spoken to directly."""

    def __init__(self, comfy: stack.Comfy, folder: Path, models: Path, lanes: int, store: bool) -> None:
        folders = stack.Folders(folder).make()
        port = stack.free_port()
        arguments = [
            *folders.arguments(),
            "--extra-model-paths-config",
            str(stack.model_paths(folder, models)),
            "--disable-api-nodes",
        ]
        self.url = f"http://127.0.0.1:{port}"
        self.running = stack.start_overlay(
            comfy, folders, port, arguments, lanes=lanes,
            env={"COMFY_SHARE_WEIGHTS": "on" if store else "off", "COMFY_WEIGHTS_DIGESTS": "0"},
        )
        self.running.wait_for(f"{self.url}/system_stats")

    def memory(self) -> Memory:
        return Memory.of(self.running.process.pid)

    def ask(self, path: str, lane: int, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-TARGET-GPU": str(lane), "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def submit(self, lane: int, seed: int) -> str:
        return str(json.loads(self.ask("/prompt", lane, {"prompt": workflow(seed)}))["prompt_id"])

    def picture(self, lane: int, prompt_id: str) -> str:
        """Waits for the job; the hash of its picture's bytes."""
        deadline = time.monotonic() + JOB_LIMIT
        while time.monotonic() < deadline:
            entry = json.loads(self.ask(f"/history/{prompt_id}", lane)).get(prompt_id)
            if entry is not None:
                if entry["status"]["status_str"] != "success":
                    raise RuntimeError(json.dumps(entry["status"])[:2000])
                image = entry["outputs"]["7"]["images"][0]
                query = f"/view?filename={image['filename']}&type={image['type']}&subfolder={image['subfolder']}"
                return hashlib.sha256(self.ask(query, lane)).hexdigest()
            time.sleep(0.1)
        raise TimeoutError(f"job {prompt_id} took longer than {JOB_LIMIT:.0f} s")

    def loader_seconds(self, lane: int) -> float:
        for line in self.ask("/metrics", 0).decode().splitlines():
            if line.startswith(f"{NODE_SECONDS}{{") and f'{LOADER}"' in line and f'gpu="{lane}"' in line:
                return float(line.rpartition(" ")[2])
        return float("nan")


def measure(comfy: stack.Comfy, folder: Path, models: Path, lanes: int, store: bool) -> Run:
    """One start: the first lane's first job, the second's, the others' together, then ten more."""
    run = Run(store, lanes)
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(comfy, folder, models, lanes, store)
    try:
        run.idle = backend.memory()
        run.pictures.append(backend.picture(0, backend.submit(0, 1)))
        if lanes > 1:
            run.pictures.append(backend.picture(1, backend.submit(1, 1)))
        others = [(lane, backend.submit(lane, 1)) for lane in range(2, lanes)]
        run.pictures += [backend.picture(lane, job) for lane, job in others]
        run.loaded = backend.memory()
        more = [(index % lanes, backend.submit(index % lanes, 2 + index)) for index in range(MORE_JOBS)]
        run.pictures += [backend.picture(lane, job) for lane, job in more]
        run.later = backend.memory()
        run.load_seconds = [backend.loader_seconds(lane) for lane in range(lanes)]
    finally:
        backend.running.stop()
    return run


def report(runs: list[Run]) -> list[str]:
    """The table, and the figures that follow from it."""
    lines = ["| store | lanes | resident MiB | anonymous | file-mapped | shared | peak | ten more | loader s by lane |",
             "|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(run) for run in runs]
    for store in (True, False):
        one, many = (run for run in runs if run.store is store)
        resident, peak = (_loaded(many).resident / _loaded(one).resident, _loaded(many).peak / _loaded(one).peak)
        added = (_loaded(many).resident - _loaded(one).resident) / (many.lanes - 1) / MIB
        lines.append(f"store {'on' if store else 'off'}: {many.lanes} lanes over 1: resident {resident:.2f} x, peak "
                     f"{peak:.2f} x, {added:.0f} MiB for each further lane")
    shared, plain = runs[1].load_seconds, runs[3].load_seconds
    lines.append(f"second lane's load: {shared[1]:.2f} s, {shared[1] / shared[0]:.0%} of the first with the store, "
                 f"{shared[1] / plain[0]:.0%} of the first without")
    equal, total = _same(runs)
    lines.append(f"pictures: {equal} of {total} equal their twin")
    return lines


def _row(run: Run) -> str:
    now, later = _loaded(run), run.later
    grown = later.resident / now.resident - 1 if later else 0.0
    seconds = ", ".join(f"{value:.2f}" for value in run.load_seconds)
    return (f"| {'on' if run.store else 'off'} | {run.lanes} | {now.resident / MIB:.0f} | {now.anonymous / MIB:.0f} | "
            f"{now.mapped / MIB:.0f} | {now.shared / MIB:.0f} | {now.peak / MIB:.0f} | {grown:+.1%} | {seconds} |")


def _loaded(run: Run) -> Memory:
    assert run.loaded is not None, "measured runs have it"
    return run.loaded


def _same(runs: list[Run]) -> tuple[int, int]:
    """Pictures of one seed are one picture, whatever the lane and the run: how many are, of how many."""
    wanted = runs[0].pictures
    equal = total = 0
    for run in runs:
        pictures = [(wanted[0], found) for found in run.pictures[: run.lanes]]
        pictures += list(zip(wanted[runs[0].lanes :], run.pictures[run.lanes :], strict=True))
        total += len(pictures)
        equal += sum(expected == found for expected, found in pictures)
    return equal, total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16"), default="fp32", help="what the file holds; fp16 is converted"
    )
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument(
        "--models", type=Path, default=None, help="folder that keeps the 1.5 GB checkpoint between runs"
    )
    options = parser.parse_args()
    comfy = stack.named_comfy()
    if comfy is None:
        print("not run: COMFYUI_DIR names no ComfyUI")
        return 2
    with tempfile.TemporaryDirectory(prefix="memory-bench-") as name:
        models = (options.models or Path(name) / "models") / options.dtype
        file = models / "checkpoints" / CHECKPOINT
        if not file.exists():
            subprocess.run(
                [comfy.python, str(Path(__file__).with_name("memory_models.py")), str(file), options.dtype],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=stack.environment({"COMFYUI_DIR": str(comfy.folder)}),
            )
        print(f"ComfyUI {comfy.version}, {file.stat().st_size / MIB:.0f} MiB {options.dtype} checkpoint, CPU lanes")
        runs = [
            measure(comfy, Path(name) / f"{store}-{lanes}", models, lanes, store)
            for store in (True, False)
            for lanes in (1, options.lanes)
        ]
        print("\n".join(report(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
