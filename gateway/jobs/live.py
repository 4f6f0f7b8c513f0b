"""What runs right now, told by the backend's events: how far each job is, at which node, and its last preview.

Owns the progress of running jobs, which is lost when it is not heard, and never what state a job is in: that is looked
at (``tracker``). A backend without ``/debug/events``, plain ComfyUI, tells nothing, and there is no progress then.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gateway.fleet.member import Member
from gateway.jobs.journal import Journal
from gateway.wire.hearing import TEXT, HearingError, hear

log = logging.getLogger("gateway.jobs")

ROUTE: Final = "/debug/events"
_SILENCE: Final = 90.0
"""Seconds; the backend pings every 30."""
_REST: Final = 1.0
"""Seconds between two attempts to be heard."""
_LOOK: Final = 0.2
"""Seconds between two looks whether there is a backend."""
_MOST: Final = 512
"""Jobs whose progress is remembered."""
_ENDS: Final = frozenset({"execution_success", "execution_error", "execution_interrupted"})


class Step(NamedTuple):
    """One node that a job was at. Times are seconds since 1970, as they were heard."""

    node: str
    kind: str
    """Its class; empty when that is not known."""
    began: float
    ended: float


@dataclass
class Progress:
    """How far one running job is. Times are seconds since 1970."""

    gpu: int | None
    started_at: float
    node: str | None = None
    """The node it is at."""
    since: float = 0.0
    """When it came there."""
    value: float | None = None
    most: float | None = None
    """Steps done and in all of that node, when it tells."""
    done: set[str] = field(default_factory=set)
    """Nodes that have run or were cached."""
    nodes: int | None = None
    """Nodes of the workflow; what no output needs is among them and never done."""
    classes: dict[str, str] = field(default_factory=dict)
    """Class of each node."""
    preview: bytes = b""
    """The newest JPEG."""
    pictures: int = 0
    """Counts previews."""
    version: int = 0
    """Counts changes."""

    def shown(self) -> dict[str, Any]:
        """As the API tells it."""
        return {
            "node": self.node,
            "value": self.value,
            "max": self.most,
            "nodes_done": len(self.done),
            "nodes_total": self.nodes,
            "started_at": self.started_at,
            "has_preview": bool(self.preview),
        }


class Live:
    """The progress of all running jobs. ``run`` listens to each backend while it is there."""

    def __init__(self, backends: Iterable[tuple[str, Member]], journal: Journal) -> None:
        """``backends``: where each of them is."""
        self.on_news: Callable[[str], None] = _nobody
        """Called with a job's id when its progress has changed."""
        self.on_end: Callable[[str], None] = _nobody
        """Called when the backend says that a job is over, and will show how if it is asked."""
        self.on_files: Callable[[str, object], None] = _no_files
        """Called with a job's id and what one of its nodes has just put out."""
        self.on_step: Callable[[str, Step], None] = _no_steps
        """Called with a job's id and the node that it has just left."""
        self.heard: set[int] = set()
        """Numbers of the backends whose events are heard at present."""
        self._backends = tuple(backends)
        self._journal = journal
        self._jobs: dict[str, Progress] = {}
        self._over: dict[str, None] = {}

    def of(self, job: str) -> Progress | None:
        """How far a job is; ``None`` when it does not run or nobody says."""
        return self._jobs.get(job)

    def over(self, job: str) -> bool:
        """Whether the backend has said lately that this job is over."""
        return job in self._over

    async def run(self) -> None:
        """Listen; never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            for url, member in self._backends:
                tasks.create_task(self._attend(url, member), name=f"live-events-{member.index}")

    async def _attend(self, url: str, member: Member) -> None:
        deaf_to = ""
        while True:
            boot = member.boot
            if not member.ready or boot == deaf_to:
                await asyncio.sleep(_LOOK)
                continue
            try:
                await self._listen(url, member)
            except HearingError as error:
                if error.refused:
                    deaf_to = boot
                    log.info("this backend tells no progress: %s", error)
            except Exception:
                log.exception("the backend's events cannot be understood")
            await asyncio.sleep(_REST)

    async def _listen(self, url: str, member: Member) -> None:
        async with contextlib.aclosing(hear(url, ROUTE, _SILENCE)) as messages:
            try:
                async for kind, payload in messages:
                    self.heard.add(member.index)
                    if kind == TEXT:
                        await self._event(payload, member.first)
                    else:
                        self._preview(payload)
            finally:
                self.heard.discard(member.index)
                for job, progress in list(self._jobs.items()):
                    if progress.gpu is None or member.first <= progress.gpu < member.first + member.gpus:
                        del self._jobs[job]
                        self.on_news(job)

    async def _event(self, payload: bytes, first: int) -> None:
        try:
            told = json.loads(payload)
            event, data, gpu = str(told["type"]), told["data"], told.get("gpu_id")
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if not isinstance(data, dict) or not isinstance(job := data.get("prompt_id"), str):
            return
        if event == "executed":
            self.on_files(job, data.get("output"))
        if event in _ENDS or (event == "executing" and data.get("node") is None):
            # ComfyUI has the job in its history by the second of the two; by the first it may not.
            self._left(job, self._jobs.pop(job, None))
            while len(self._over) >= _MOST:
                del self._over[next(iter(self._over))]
            self._over[job] = None
            self.on_news(job)
            self.on_end(job)
            return
        progress = self._jobs.get(job)
        if progress is None:
            nodes, classes = await self._nodes(job)
            progress = self._begin(job, first + gpu if isinstance(gpu, int) else None)
            progress.nodes, progress.classes = nodes, classes
        if event == "executing":
            self._left(job, progress)
        _apply(progress, event, data)
        progress.version += 1
        self.on_news(job)

    def _left(self, job: str, progress: Progress | None) -> None:
        """A job goes on to its next node, or ends."""
        if progress is None:
            return
        now = time.time()
        if progress.node is not None:
            self.on_step(job, Step(progress.node, progress.classes.get(progress.node, ""), progress.since, now))
        progress.since = now

    def _begin(self, job: str, gpu: int | None) -> Progress:
        while len(self._jobs) >= _MOST:
            del self._jobs[next(iter(self._jobs))]
        progress = self._jobs[job] = Progress(gpu, time.time())
        return progress

    async def _nodes(self, job: str) -> tuple[int | None, dict[str, str]]:
        """How many nodes its workflow has, and the class of each."""
        if self._journal.get(job) is None:
            return None, {}
        try:
            graph = json.loads(await self._journal.store.body(job) or b"")["prompt"]
            return len(graph), {str(node): str(told.get("class_type", "")) for node, told in graph.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, {}

    def _preview(self, payload: bytes) -> None:
        size = int.from_bytes(payload[4:8], "big")
        try:
            metadata = json.loads(payload[8 : 8 + size])
        except ValueError:
            return
        job = metadata.get("prompt_id") if isinstance(metadata, dict) else None
        progress = self._jobs.get(job) if isinstance(job, str) else None
        if progress is not None and isinstance(job, str):
            progress.preview = payload[8 + size :]
            progress.pictures += 1
            progress.version += 1
            self.on_news(job)


def _apply(progress: Progress, event: str, data: dict[str, Any]) -> None:
    """What one event says of a job's progress."""
    node = data.get("node")
    if event == "execution_cached" and isinstance(cached := data.get("nodes"), list):
        progress.done |= {str(each) for each in cached}
    elif event == "executing":
        if progress.node is not None:
            progress.done.add(progress.node)
        progress.node, progress.value, progress.most = str(node), None, None
    elif event == "executed":
        progress.done.add(str(node))
    elif event == "progress":
        progress.node = progress.node if node is None else str(node)
        progress.value, progress.most = _number(data.get("value")), _number(data.get("max"))
    elif event == "progress_state" and isinstance(nodes := data.get("nodes"), dict):
        for name, state in nodes.items():
            if isinstance(state, dict) and state.get("state") == "finished":
                progress.done.add(str(name))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _no_steps(_job: str, _step: Step) -> None:
    """Nobody asks how long nodes take."""


def _no_files(_job: str, _output: object) -> None:
    """Nobody asks whose a file is."""


def _nobody(job: str) -> None:
    """Nobody listens."""
