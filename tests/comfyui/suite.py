"""Runs ComfyUI's own ``tests/execution`` as it stands, with servers of the proof's choice behind ``python main.py``.

The suite sees a view of the checkout: its own ``tests`` by a link, and the launcher in the place of ``main.py``.
Must not know what a result means: the proofs compare.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.comfyui import stack
from tests.comfyui.stack import Comfy, Folders, Running

PLUGINS = Path(__file__).with_name("plugins")
SUITE_LIMIT = 1500.0
SELECT = os.environ.get("PROOF_SELECT", "")
"""A part of the suite, as pytest's ``-k``; empty: all of it."""


@dataclass(frozen=True)
class Wanted:
    """One start that the suite asks for: ComfyUI's arguments without where to listen, and the port it will call."""

    port: int
    arguments: tuple[str, ...]


@dataclass
class Served:
    """What answers a start: the port to talk to, and what to kill when the suite kills its server."""

    port: int
    processes: list[Running] = field(default_factory=list)


Maker = Callable[[Wanted], Served]


class Servers:
    """Answers launchers on a socket of the file system; a launcher's death ends the server made for it."""

    def __init__(self, folder: Path, make: Maker, release: Callable[[Served], None]) -> None:
        self.path = str(folder / "servers")
        self.failures: list[str] = []
        self._make, self._release = make, release
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(self.path)
        self._door.listen()
        threading.Thread(target=self._accept, name="suite-servers", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                launcher, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(launcher,), name="suite-server", daemon=True).start()

    def _answer(self, launcher: socket.socket) -> None:
        with launcher, launcher.makefile("rw") as talk:
            request = json.loads(talk.readline())
            try:
                served = self._make(wanted(request["argv"], Path(request["cwd"])))
            except Exception as error:  # noqa: BLE001 (a thread's error must reach the proof)
                self.failures.append(str(error))
                return
            try:
                talk.write(f"{served.port}\n")
                talk.flush()
                talk.readline()
            except OSError:
                pass
            finally:
                self._release(served)

    def close(self) -> None:
        self._door.close()


def wanted(argv: Sequence[str], cwd: Path) -> Wanted:
    """Take a suite's command line apart; relative paths become absolute."""
    port, arguments = 8188, []
    words = iter(argv)
    for word in words:
        if word == "--port":
            port = int(next(words))
        elif word in ("--listen", "--output-directory"):
            next(words)
        elif word == "--extra-model-paths-config":
            arguments += [word, str(cwd / next(words))]
        elif word != "--cpu":
            arguments.append(word)
    return Wanted(port, tuple(arguments))


def kill(served: Served) -> None:
    """End what was made for one start."""
    for running in served.processes:
        running.kill()


def plain_maker(comfy: Comfy, folder: Path) -> Maker:
    """Plain ComfyUI for every start."""

    def make(start: Wanted) -> Served:
        folders = Folders(Path(tempfile.mkdtemp(dir=folder))).make()
        extra = [word for word in comfy.plain_arguments if word != "--cache-classic"]  # the suite chooses the cache
        port = stack.free_port()
        arguments = ["--cpu", *start.arguments, *extra, *folders.kept_out_of_checkout(), "--output-directory",
                     str(folders.output)]
        running = stack.start_plain(comfy, folders, port, arguments)
        return _ready(Served(port, [running]), f"http://127.0.0.1:{port}/system_stats")

    return make


def start_ports(comfy: Comfy, folder: Path, arguments: Sequence[str], gpu: int, ports: Sequence[int] = ()) -> Served:
    """A backend of four lanes and a gateway before it, on ``ports`` if given; answers with the port of ``gpu``."""
    folders = Folders(Path(tempfile.mkdtemp(dir=folder))).make()
    inner, front = stack.free_port(), stack.free_port()
    everything = [*arguments, *folders.kept_out_of_checkout(), "--output-directory", str(folders.output)]
    served = Served(0, [stack.start_overlay(comfy, folders, inner, everything)])
    _ready(served, f"http://127.0.0.1:{inner}/system_stats")
    first = ports[0] if ports else stack.free_port(stack.LANES)
    ports = ports or range(first, first + stack.LANES)
    served.processes.insert(0, stack.start_gateway(folders.root, f"http://127.0.0.1:{inner}", front, ports))
    served.port = ports[gpu]
    return _ready(served, f"http://127.0.0.1:{ports[gpu]}/system_stats")


def start_processes(comfy: Comfy, folder: Path, arguments: Sequence[str], gpu: int) -> Served:
    """A gateway that starts a backend process for each of its GPUs; answers with the port of ``gpu``."""
    folders = Folders(Path(tempfile.mkdtemp(dir=folder))).make()
    first, inner = stack.free_port(stack.PROCESSES + 1), stack.free_port(stack.PROCESSES)
    ports = range(first + 1, first + 1 + stack.PROCESSES)
    everything = [*arguments, *folders.kept_out_of_checkout(), "--output-directory", str(folders.output)]
    up = stack.start_supervised(comfy, folders, first, ports, inner, everything, mode="per-gpu")
    return _ready(Served(ports[gpu], [up]), *(f"http://127.0.0.1:{port}/system_stats" for port in ports))


def _ready(served: Served, *urls: str) -> Served:
    try:
        for url in urls:
            served.processes[0].wait_for(url)
    except Exception:
        kill(served)
        raise
    return served


Key = tuple[int, tuple[str, ...]]


class SharedPorts:
    """One backend and gateway for two suites at once: the n-th start of each, with equal arguments, is one start."""

    def __init__(self, comfy: Comfy, folder: Path, gpus: dict[int, int]) -> None:
        self._comfy, self._folder, self._gpus = comfy, folder, gpus
        self._lock = threading.Lock()
        self._starts: Counter[Key] = Counter()
        self._made: dict[Key, Served] = {}
        self._left: Counter[int] = Counter()
        self.shared = 0
        """Servers that both suites used."""

    def make(self, start: Wanted) -> Served:
        """The port of this suite's GPU on the servers that both suites use."""
        arguments = tuple(Path(word).name if word.endswith(".yaml") else word for word in start.arguments)
        with self._lock:
            self._starts[start.port, arguments] += 1
            key = (self._starts[start.port, arguments], arguments)
            self.shared += key in self._made
            if key not in self._made:
                self._made[key] = start_ports(self._comfy, self._folder, start.arguments, 0)
            both = self._made[key]
        return Served(both.port + self._gpus[start.port], both.processes)

    def release(self, served: Served) -> None:
        """End the servers once both suites have left them."""
        with self._lock:
            self._left[served.processes[-1].process.pid] += 1
            if self._left[served.processes[-1].process.pid] == 2:
                kill(served)

    def close(self) -> None:
        for made in self._made.values():
            kill(made)


@dataclass(frozen=True)
class Result:
    """What one run of the suite gave: each test's outcome by its name."""

    outcomes: dict[str, str]
    seconds: float
    log: Path

    def count(self, outcome: str) -> int:
        return sum(1 for given in self.outcomes.values() if given == outcome)

    def names(self, outcome: str) -> set[str]:
        return {name for name, given in self.outcomes.items() if given == outcome}

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(kind)} {kind}" for kind in ("passed", "failed", "error", "skipped"))
        return f"{counts} in {self.seconds:.0f} s"


def make_view(comfy: Comfy, folder: Path) -> Path:
    """A folder that looks to the suite like the checkout, with the launcher as its ``main.py``."""
    view = folder / "view"
    view.mkdir()
    (view / "tests").symlink_to(comfy.folder / "tests")
    (view / "pytest.ini").symlink_to(comfy.folder / "pytest.ini")
    shutil.copy(Path(__file__).with_name("launcher.py"), view / "main.py")
    return view


def start_suite(
    comfy: Comfy, folder: Path, port: int, servers: Servers, *,
    select: str = "", env: dict[str, str] | None = None, plugin: str = "", busy: bool = False,
) -> Callable[[], Result]:
    """Start the suite in the background; call the answer to wait for its result.

    ``busy`` is the suite's own option for machines that are: no upper limits on what a job may take.
    """
    view, log, report = make_view(comfy, folder), folder / "suite.log", folder / "suite.xml"
    child = stack.environment({
        "PATH": f"{Path(comfy.python).parent}{os.pathsep}{os.environ['PATH']}", "PROOF_SOCKET": servers.path,
        "PYTHONPATH": os.pathsep.join([str(comfy.folder), str(PLUGINS)]), **(env or {}),
    })
    command = [comfy.python, "-m", "pytest", "tests/execution", "-p", "no:cacheprovider", "--port", str(port),
               "--output_dir", str(folder / "out"), f"--junitxml={report}"]
    command += ["-k", select] if select else []
    command += ["-p", plugin] if plugin else []
    command += ["--skip-timing-checks"] if busy else []
    running = Running("suite", command, view, log, child)
    started = time.monotonic()

    def wait() -> Result:
        try:
            running.process.wait(SUITE_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            running.kill()
        if not report.exists():
            raise RuntimeError(f"the suite gave no report:\n{running.tail()}\n{servers.failures}")
        return Result(read_report(report), time.monotonic() - started, log)

    return wait


def read_report(report: Path) -> dict[str, str]:
    """Each test's outcome from a JUnit file."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = next((kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed")
        outcomes[name] = {"failure": "failed"}.get(outcomes[name], outcomes[name])
    return outcomes


HELD = {"PROOF_HELD": "1"}


def run_plain(comfy: Comfy, folder: Path) -> Result:
    """The suite on plain ComfyUI, its servers started by the same launcher."""
    folder.mkdir()
    servers = Servers(folder, plain_maker(comfy, folder), kill)
    try:
        return start_suite(comfy, folder, stack.free_port(), servers, select=SELECT, env=HELD)()
    finally:
        servers.close()


def run_port(comfy: Comfy, folder: Path, gpu: int, *, held: bool = False) -> Result:
    """The suite on the gateway port of ``gpu`` with four lanes behind it; the gateway itself has the suite's port.

    ``held`` puts the launcher's byte pass between them, for machines on which a start takes longer than the suite
    waits.
    """
    folder.mkdir()
    first = stack.free_port(stack.LANES)
    ports = range(first, first + stack.LANES)

    def make(start: Wanted) -> Served:
        return start_ports(comfy, folder, start.arguments, gpu, () if held else ports)

    servers = Servers(folder, make, kill)
    try:
        return start_suite(comfy, folder, ports[gpu], servers, select=SELECT, env=HELD if held else {})()
    finally:
        servers.close()


def run_process(comfy: Comfy, folder: Path, gpu: int) -> Result:
    """The suite on the gateway port of ``gpu`` with a process for each GPU behind it.

    The launcher's byte pass is between them: the gateway listens before its backends do, and the suite takes a port
    that listens for one that is ready.
    """
    folder.mkdir()
    servers = Servers(folder, lambda start: start_processes(comfy, folder, start.arguments, gpu), kill)
    try:
        return start_suite(comfy, folder, stack.free_port(), servers, select=SELECT, env=HELD)()
    finally:
        servers.close()


def run_across(comfy: Comfy, folder: Path, select: str, *, held: bool = False, processes: bool = False) -> Result:
    """A part of the suite with its clients spread over all ports: each new one goes to the next.

    ``held`` is as in ``run_port``, for all of them; ``processes``: with a process for each GPU, which is always held.
    """
    folder.mkdir()
    held = held or processes
    count = stack.PROCESSES if processes else stack.LANES
    first = stack.free_port(count)
    ports = range(first, first + count)

    def make(start: Wanted) -> Served:
        if processes:
            return start_processes(comfy, folder, start.arguments, 0)
        return start_ports(comfy, folder, start.arguments, 0, () if held else ports)

    servers = Servers(folder, make, kill)
    try:
        env = {"PROOF_PORTS": ",".join(map(str, ports)), **(HELD if held else {})}
        return start_suite(comfy, folder, ports[0], servers, select=select, env=env, plugin="across_ports")()
    finally:
        servers.close()


def run_two_ports(comfy: Comfy, folder: Path, gpus: tuple[int, int]) -> tuple[list[Result], int]:
    """The suite twice at once, on two ports of the same gateways; answers with how many servers both used, too."""
    folder.mkdir()
    ports = {stack.free_port(): gpu for gpu in gpus}
    shared = SharedPorts(comfy, folder, ports)
    servers = Servers(folder, shared.make, shared.release)
    waits = []
    try:
        for port, gpu in ports.items():
            own = folder / f"gpu{gpu}"
            own.mkdir()
            waits.append(start_suite(comfy, own, port, servers, select=SELECT, env=HELD, busy=True))
        return [wait() for wait in waits], shared.shared
    finally:
        servers.close()
        shared.close()
