"""Progress from the backend's events; without them there is none, and nothing else is missing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.server as ws

from gateway.fleet.lanes import Fleet
from gateway.jobs import live as module
from gateway.jobs.bus import LocalBus
from gateway.jobs.journal import Journal
from gateway.jobs.live import Live
from gateway.jobs.sqlite import SQLiteStore
from tests.doubles.wait import until

Talk = Callable[[ws.ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(folder: Path, talk: Talk, **options: Any) -> AsyncIterator[tuple[Live, Fleet]]:
    """A ``Live`` at a backend that says what ``talk`` says."""
    journal = Journal(SQLiteStore(folder / "jobs.sqlite3"), LocalBus())
    await journal.open()
    async with ws.serve(talk, "127.0.0.1", 0, compression=None, **options) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        fleet = Fleet(2)
        fleet.members[0].backend_up("toy", boot="1")
        live = Live([(f"http://127.0.0.1:{port}", fleet.members[0])], journal)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(live.run(), name="live")
            try:
                yield live, fleet
            finally:
                task.cancel()
    await journal.close()


def event(name: str, job: str = "a", gpu: int = 1, **data: Any) -> str:
    return json.dumps({"type": name, "data": {"prompt_id": job, **data}, "gpu_id": gpu})


async def test_progress_follows_the_events(tmp_path: Path):
    """Node, steps, nodes done, preview; and the end takes it away and says so."""
    news: list[str] = []
    over: list[str] = []
    go_on = asyncio.Event()

    async def talk(peer: ws.ServerConnection) -> None:
        await peer.send(json.dumps({"type": "hello", "data": {"gpus": 2}, "gpu_id": None}))
        await peer.send("no JSON")
        await peer.send(event("execution_start"))
        await peer.send(event("execution_cached", nodes=["1", "2"]))
        await peer.send(event("executing", node="3"))
        await peer.send(event("progress_state", nodes={"3": {"state": "running"}, "9": {"state": "finished"}}))
        await peer.send(event("progress", node="3", value=2, max=8))
        text = json.dumps({"prompt_id": "a", "gpu_id": 1}).encode()
        await peer.send((4).to_bytes(4, "big") + len(text).to_bytes(4, "big") + text + b"JPEG")
        await peer.send(event("execution_start", "b"))
        await go_on.wait()
        await peer.send([event("executing", node="4")[:9], event("executing", node="4")[9:]])  # in two frames
        await peer.send(event("executing", node=None))
        await peer.wait_closed()

    async with listening(tmp_path, talk) as (live, _):
        live.on_news, live.on_end = news.append, over.append
        await until(lambda: live.of("b"))
        progress = live.of("a")
        assert progress is not None
        assert progress.done == {"1", "2", "9"}
        assert (progress.gpu, progress.node, progress.value, progress.most) == (1, "3", 2, 8)
        assert progress.preview == b"JPEG"
        assert live.heard == {0}
        go_on.set()
        await until(lambda: over)
        assert live.of("a") is None
        assert progress.done == {"1", "2", "3", "9"}
        assert news.count("a") >= 7
        assert over == ["a"]


async def test_a_connection_that_breaks_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was known is forgotten, for nobody knows any more."""
    monkeypatch.setattr(module, "_REST", 0.01)
    monkeypatch.setattr(module, "_LOOK", 0.01)
    met: list[ws.ServerConnection] = []

    async def talk(peer: ws.ServerConnection) -> None:
        met.append(peer)
        await peer.send(event("executing", job=f"job{len(met)}", node="1"))
        await peer.wait_closed()

    async with listening(tmp_path, talk) as (live, _):
        await until(lambda: live.of("job1"))
        met[0].transport.abort()
        await until(lambda: live.of("job2"))
        assert live.of("job1") is None


async def test_a_backend_without_events_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plain ComfyUI says 404; its next life may know better."""
    monkeypatch.setattr(module, "_REST", 0.01)
    monkeypatch.setattr(module, "_LOOK", 0.01)
    asked: list[str] = []

    async def talk(peer: ws.ServerConnection) -> None:
        await peer.wait_closed()

    def refuse(peer: ws.ServerConnection, request: Any) -> Any:
        asked.append(request.path)
        return peer.respond(404, "no") if len(asked) == 1 else None

    async with listening(tmp_path, talk, process_request=refuse) as (live, fleet):
        await until(lambda: asked)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert asked == ["/debug/events"]
        assert not live.heard
        fleet.members[0].backend_up("toy", boot="2")
        await until(lambda: len(asked) == 2)


async def test_pings_are_answered(tmp_path: Path):
    """The backend cuts who does not."""
    answered: list[float] = []

    async def talk(peer: ws.ServerConnection) -> None:
        answered.append(await (await peer.ping(b"are you there")))
        await peer.wait_closed()

    async with listening(tmp_path, talk):
        await until(lambda: answered)
