"""What ``bench.gpu`` compares: one plain process, lanes in one process, one process for each GPU.

Knows how each is started, of a ComfyUI and of the embedded engine, and how its lanes are reached. Measures nothing.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.comfyui import stack, workflows
from tests.comfyui.wire import Lane, Prompt
from tests.doubles.prompts import painting

ROOT = stack.ROOT


@dataclass(frozen=True)
class Weight:
    """A class of models: how wide and deep, how large the latent, how many steps a job."""

    name: str
    dim: int
    ffn: int
    layers: int
    size: int
    length: int
    steps: int

    @property
    def file(self) -> str:
        return f"bench_{self.name}.safetensors"

    def prompt(self, seed: int) -> Prompt:
        """One job: the model, random conditioning, sampling, the latent saved."""
        found = workflows.wan(seed, prefix="bench/gpu")
        found["1"]["inputs"]["unet_name"] = self.file
        found["4"]["inputs"].update(width=self.size, height=self.size, length=self.length)
        found["5"]["inputs"].update(steps=self.steps)
        return found


WEIGHTS = (
    Weight("light", 512, 2048, 12, 256, 1, 20),
    Weight("middling", 1536, 8960, 30, 512, 1, 20),
    Weight("heavy", 5120, 13824, 8, 512, 17, 8),
)
TINY = Weight("tiny", 128, 128, 1, 64, 5, 12)


@dataclass
class Site:
    """Processes, and how each GPU's queue in them is reached."""

    lanes: list[Lane]
    running: list[stack.Running] = field(default_factory=list)

    def stop(self) -> None:
        for each in self.running:
            each.stop()

    def ready(self) -> "Site":
        """Wait until every process answers."""
        try:
            for each, host in zip(self.running, dict.fromkeys(lane.host for lane in self.lanes), strict=True):
                each.wait_for(f"http://{host}/system_stats")
        except BaseException:
            self.stop()
            raise
        return self


class Engines:
    """The embedded engine, for machines without a ComfyUI and for dry runs."""

    name = "embedded engine"

    def __init__(self, folder: Path, cards: int) -> None:
        self.folder, self.cards = folder, cards

    def prompt(self, weight: Weight, seed: int) -> Prompt:
        """The engine's one model, on pictures of the class's size."""
        return painting(seed, "bench", steps=weight.steps, size=weight.size)

    def prepare(self, weight: Weight) -> None:
        """It brings its model along."""

    def devices(self, count: int) -> list[str]:
        """One device for each lane, in turn when there are fewer."""
        return [f"cuda:{index % self.cards}" if self.cards else "cpu" for index in range(count)]

    def lanes(self, count: int) -> Site:
        """One process with so many lanes."""
        port = stack.free_port()
        site = Site([Lane(f"127.0.0.1:{port}", gpu, {"X-TARGET-GPU": str(gpu)}) for gpu in range(count)])
        site.running.append(self._start(f"lanes-{count}", port, self.devices(count), {}))
        return site.ready()

    def processes(self, count: int) -> Site:
        """One plain process for each GPU."""
        site = Site([])
        for gpu in range(count):
            port = stack.free_port()
            site.lanes.append(Lane(f"127.0.0.1:{port}"))
            site.running.append(self._plain(f"process-{count}-{gpu}", port, self._card(gpu)))
        return site.ready()

    def _card(self, gpu: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": str(gpu % self.cards)} if self.cards else {}

    def _plain(self, name: str, port: int, env: Mapping[str, str]) -> stack.Running:
        return self._start(name, port, self.devices(1), {**env, "COMFY_MULTI_GPU_SCHED": "0"})

    def _start(self, name: str, port: int, devices: list[str], env: Mapping[str, str]) -> stack.Running:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "backend.launch", "--port", str(port), "--devices", ",".join(devices),
                   "--data", str(folder / "data")]
        return stack.Running(name, command, ROOT, folder / "log", stack.environment({"PYTHONPATH": str(ROOT), **env}))


class Comfys(Engines):
    """A real ComfyUI, with models of random weights."""

    def __init__(self, folder: Path, cards: int, comfy: stack.Comfy, models: Path) -> None:
        super().__init__(folder, cards)
        self.comfy, self.models = comfy, models
        self.name = f"ComfyUI {comfy.version}"

    def prompt(self, weight: Weight, seed: int) -> Prompt:
        return weight.prompt(seed)

    def prepare(self, weight: Weight) -> None:
        """Write the class's model, if it is not there yet."""
        file = self.models / "diffusion_models" / weight.file
        if file.exists():
            return
        shape = [str(number) for number in (weight.dim, weight.ffn, weight.layers)]
        command = [self.comfy.python, str(Path(__file__).with_name("gpu_models.py")), str(file), *shape]
        env = stack.environment({"COMFYUI_DIR": str(self.comfy.folder)})
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)

    def _arguments(self, folders: stack.Folders) -> list[str]:
        paths = stack.model_paths(folders.root, self.models)
        return [*folders.arguments(), "--extra-model-paths-config", str(paths), "--disable-api-nodes"]

    def _plain(self, name: str, port: int, env: Mapping[str, str]) -> stack.Running:
        folders = stack.Folders(self.folder / name).make()
        cpu = [] if self.cards else ["--cpu"]
        command = [self.comfy.python, "main.py", "--port", str(port), *cpu, *self.comfy.plain_arguments,
                   *self._arguments(folders)]
        return stack.Running(name, command, self.comfy.folder, folders.root / "log", stack.environment(dict(env)))

    def _start(self, name: str, port: int, devices: list[str], env: Mapping[str, str]) -> stack.Running:
        import prometheus_client  # noqa: PLC0415 (only its place matters)

        folders = stack.Folders(self.folder / name).make()
        command = [self.comfy.python, str(ROOT / "backend/bootstrap.py"), "--comfyui", str(self.comfy.folder),
                   "--gpus", str(len(devices)), "--devices", ",".join(devices), "--port", str(port), "--",
                   *self._arguments(folders)]
        lib = {"COMFY_GATEWAY_LIB": str(Path(prometheus_client.__file__).parents[1])}
        return stack.Running(name, command, folders.root, folders.root / "log", stack.environment({**lib, **env}))


CARDS = """
import json, time, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
micros = None
if count:
    torch.ones(8, device="cuda").sum().item()
    began = time.perf_counter()
    for _ in range(200):
        torch.cuda.memory_stats(0), torch.cuda.mem_get_info(0)
    micros = (time.perf_counter() - began) / 200 * 1e6
print(json.dumps({"count": count, "name": torch.cuda.get_device_name(0) if count else None, "micros": micros,
                  "torch": torch.__version__}))
"""


def cards(python: str) -> dict[str, Any]:
    """The CUDA devices that this interpreter's torch sees, and what asking for free memory costs."""
    import json  # noqa: PLC0415 (only here)

    done = subprocess.run([python, "-c", CARDS], check=True, capture_output=True, text=True, env=dict(os.environ))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
