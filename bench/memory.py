"""Memory of one checkpoint on one and on several lanes, with one host copy of the weights and without.

usage: COMFYUI_DIR=/path/to/ComfyUI [COMFYUI_PYTHON=…] python -m bench.memory [--dtype fp32] [--lanes 4] [--models DIR]

Starts the backend on virtual CPU lanes four times (store on and off, one lane and several). Each lane first loads the
checkpoint without a job (``POST /preload``) and then makes a picture, so that what its models cost and what its work
leaves are told apart; ten more pictures follow, on all lanes at once, and a rest. Prints what the kernel says of the
process: anonymous, file-mapped, shared (weights that were converted) and peak resident memory, their ratio to one
lane, growth, how long the second lane's load took, and whether each goal is met. Pictures are compared byte by byte
over lanes and runs. Needs no GPU; about 8 GB of free memory for fp32.
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
from statistics import mean
from typing import Any

from tests.comfyui import stack

MIB = 1024 * 1024
MORE_JOBS = 10
JOB_LIMIT = 600.0
"""Seconds one job may take on a loaded machine."""
REST = 25.0
"""Seconds without a job after which the process has collected and given back: two of its ten-second turns."""
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
    moments: list[Memory] = field(default_factory=list)
    """At the start, and then for each lane after its load and after its first job."""
    later: Memory | None = None
    """After ten further jobs."""
    rest: Memory | None = None
    """Some time after the last job."""
    load_seconds: list[float] = field(default_factory=list)
    """The loader node's seconds by lane; lane 0 was the first."""
    pictures: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> Memory:
        """After every lane ran its first job."""
        return self.moments[-1]

    def grown(self, what: int) -> list[int]:
        """Bytes by which each lane's load (1) or first job (2) made the process grow."""
        sizes = [moment.resident for moment in self.moments]
        return [after - before for before, after in zip(sizes[what - 1 :: 2], sizes[what::2], strict=False)]


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
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=JOB_LIMIT) as answer:
            content: bytes = answer.read()
        return content

    def preload(self, lane: int) -> None:
        """Loads the checkpoint on the lane without a job."""
        self.ask("/preload", lane, {"models": [{"type": "checkpoints", "name": CHECKPOINT}]})

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
    """One start: each lane's load and first job, then ten more jobs on all at once, then a rest."""
    run = Run(store, lanes)
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(comfy, folder, models, lanes, store)
    try:
        run.moments.append(backend.memory())
        for lane in range(lanes):
            backend.preload(lane)
            run.moments.append(backend.memory())
            run.pictures.append(backend.picture(lane, backend.submit(lane, 1)))
            run.moments.append(backend.memory())
        more = [(index % lanes, backend.submit(index % lanes, 2 + index)) for index in range(MORE_JOBS)]
        run.pictures += [backend.picture(lane, job) for lane, job in more]
        run.later = backend.memory()
        time.sleep(REST)
        run.rest = backend.memory()
        run.load_seconds = [backend.loader_seconds(lane) for lane in range(lanes)]
    finally:
        backend.running.stop()
    return run


def report(runs: list[Run]) -> list[str]:
    """The table and what follows from it; ``runs``: one lane and several with the store, then both without."""
    lines = [
        "| store | lanes | resident MiB | anonymous | file-mapped | shared | peak | ten more | at rest | loader s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(run) for run in runs]
    for one, many in (runs[:2], runs[2:]):
        lines.append(f"store {'on' if many.store else 'off'}: {many.lanes} lanes over 1: resident "
                     f"{_ratio(one.loaded.resident, many.loaded.resident):.2f} x, at rest "
                     f"{_ratio(_at_rest(one), _at_rest(many)):.2f} x, peak {_ratio(_peak(one), _peak(many)):.2f} x")
        loads, work = (", ".join(f"{size / MIB:.1f}" for size in many.grown(what)) for what in (1, 2))
        lines.append(f"    MiB by which each lane's load made it grow: {loads}; its first job: {work}")
    equal, total = _same(runs)
    return [*lines, *goals(runs), f"pictures: {equal} of {total} equal their twin"]


def goals(runs: list[Run]) -> list[str]:
    """Each goal of the store, with the figure it is judged by and whether that meets it."""
    one, many, plain = runs[0], runs[1], runs[2]
    further = many.lanes - 1
    work = further * mean(many.grown(2)[1:])
    need = _peak(one) - _at_rest(one)
    most = 1.10 * one.loaded.resident + work
    grown = _ratio(many.loaded.resident, _later(many).resident) - 1
    first, second = many.load_seconds[:2]
    resident, rest = _ratio(one.loaded.resident, many.loaded.resident), _ratio(_at_rest(one), _at_rest(many))
    return [
        _goal(many.loaded.resident <= most,
              f"resident {many.loaded.resident / MIB:.0f} MiB, at most {most / MIB:.0f}: 1.10 x one lane and the "
              f"{work / MIB:.0f} MiB that the work of {further} further lanes leaves"),
        _goal(resident <= 1.10, f"resident {resident:.3f} x one lane, at most 1.10, nothing allowed for work"),
        _goal(rest <= 1.10, f"at rest {rest:.3f} x one lane, at most 1.10, nothing allowed for work"),
        _goal(_peak(many) <= 1.15 * _peak(one),
              f"peak {_ratio(_peak(one), _peak(many)):.3f} x one lane's, at most 1.15, with all lanes at work at once"),
        _goal(_peak(many) - further * need <= 1.15 * _peak(one),
              f"peak {_ratio(_peak(one), _peak(many) - further * need):.3f} x one lane's, at most 1.15, less the "
              f"{need / MIB:.0f} MiB that each further lane's job needs while it runs (one lane's peak less its rest)"),
        _goal(grown < 0.01, f"ten more jobs {grown:+.2%}, less than 1 %"),
        *(_goal(second < 0.10 * whole, f"second lane's load {second:.3f} s, {second / whole:.1%} of a first load "
                f"{kind} the store, less than 10 %") for kind, whole in (("without", plain.load_seconds[0]),
                                                                          ("with", first))),
    ]


def _goal(met: bool, words: str) -> str:
    return f"goal {'met   ' if met else 'MISSED'} {words}"


def _row(run: Run) -> str:
    now = run.loaded
    grown = _ratio(now.resident, _later(run).resident) - 1
    seconds = ", ".join(f"{value:.3f}" for value in run.load_seconds)
    return (f"| {'on' if run.store else 'off'} | {run.lanes} | {now.resident / MIB:.0f} | {now.anonymous / MIB:.0f} | "
            f"{now.mapped / MIB:.0f} | {now.shared / MIB:.0f} | {_peak(run) / MIB:.0f} | {grown:+.1%} | "
            f"{_at_rest(run) / MIB:.0f} | {seconds} |")


def _ratio(one: int, many: int) -> float:
    return many / one


def _later(run: Run) -> Memory:
    assert run.later is not None, "measured runs have it"
    return run.later


def _peak(run: Run) -> int:
    return _later(run).peak


def _at_rest(run: Run) -> int:
    assert run.rest is not None, "measured runs have it"
    return run.rest.resident


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
