"""The composition root in one process: starting, failing to start, stopping; a canned server plays the backend."""

import asyncio
import json
import logging
import socket
import sys
from dataclasses import replace

import pytest

from gateway.app import App
from gateway.banner import banner
from gateway.config import Backend, Config, Jobs, Listen, Log, Timeouts
from gateway.fleet.ask import AskError, asker
from gateway.fleet.lanes import Fleet
from gateway.opening import StartError, check_free
from gateway.process import loop_factory
from gateway.reload import Read
from gateway.server import Bound
from tests.doubles.canned import canned, ok
from tests.doubles.wait import until

PROMPT = ok(b'{"exec_info": {"queue_remaining": 0}}')
STATS = ok(b'{"system": {"comfyui_version": "0.3.64"}, "devices": [{"name": "cpu"}]}')
COMFYUI = {"/prompt": PROMPT, "/system_stats": STATS}


def config_for(url: str, *, start: bool = False) -> Config:
    return Config(
        listen=Listen(front_port=0, gpu_ports=(0, 0)),
        backend=Backend(url=url, start=start),
        timeouts=Timeouts(drain=5.0),
        jobs=Jobs(journal=""),
        log=Log(access=False),
    )


class Running:
    """An app on a task of the test, and what it said."""

    def __init__(self, config: Config, read: Read | None = None) -> None:
        self.said: list[str] = []
        self.lines: list[str] = []
        self.app = App(config, {}, self.said.append, self.lines.append, read)
        self.task = asyncio.get_running_loop().create_task(self.app.run(), name="app")

    def url(self, gpu: int | None) -> str:
        (bound,) = [at for at in self.app.server.bound if at.gpu == gpu]
        return f"http://127.0.0.1:{bound.port}"

    async def listening(self) -> None:
        await until(lambda: len(self.app.server.bound) == 3 or self.task.done())

    async def ready(self) -> None:
        await until(lambda: self.said or self.task.done())

    async def stop(self) -> None:
        self.app.stop()
        async with asyncio.timeout(30):
            await self.task


async def test_a_gateway_comes_up_in_front_of_a_backend_and_goes():
    """Ready is said once, with an address for each GPU and what the backend is; afterwards nothing listens."""
    async with canned(COMFYUI) as backend:
        running = Running(config_for(backend.url))
        await running.ready()
        text = "\n".join(running.said)
        assert f"GPU 0      {running.url(0)}" in text
        assert f"GPU 1      {running.url(1)}" in text
        assert running.url(None) in text
        assert f"comfyui 0.3.64 at {backend.url}" in text
        url = running.url(None)
        assert json.loads((await asker(url)("/health")).body)["status"] == "healthy"
        await running.stop()
    with pytest.raises(AskError):
        await asker(url)("/health")


async def test_a_stop_before_the_backend_is_there_is_a_clean_one():
    """Nothing was ever ready: run returns all the same, and nothing was said."""
    async with canned({}) as backend:
        running = Running(config_for(backend.url))
        await running.listening()
        await running.stop()
    assert running.said == []


async def test_a_reload_changes_what_can_be_changed_and_says_what_cannot(caplog: pytest.LogCaptureFixture):
    """New limits and the log's level hold at once, on connections that are open; a new port waits for a start."""
    caplog.set_level(logging.INFO, "gateway.reload")
    root = logging.getLogger().level
    async with canned(COMFYUI) as backend:
        config = config_for(backend.url)
        wanted = replace(
            config,
            limits=replace(config.limits, body=10),
            log=replace(config.log, level="error"),
            listen=replace(config.listen, front_port=1),
        )
        running = Running(config, lambda: (wanted, ["a warning"]))
        await running.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url(0).rpartition(":")[2]))
        try:
            running.app.reload()
            assert logging.getLogger().level == logging.ERROR
            writer.write(b"POST /prompt HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")
        finally:
            logging.getLogger().setLevel(root)
            writer.close()
            await writer.wait_closed()
        assert running.app.config == replace(wanted, listen=config.listen)
        await running.stop()
    said = [record.getMessage() for record in caplog.records if record.name == "gateway.reload"]
    assert said == [
        "a warning",
        "changed, but only read at the start: [listen] front_port",
        "reloaded: [limits] body, [log] level",
    ]


async def test_without_a_way_to_read_settings_again_a_reload_is_nothing():
    """Who builds an app without a file keeps it as it is."""
    async with canned(COMFYUI) as backend:
        running = Running(config_for(backend.url))
        running.app.reload()
        await running.listening()
        await running.stop()


async def test_a_busy_port_is_an_error_that_names_it_and_leaves_nothing_listening():
    """The ports before it are given back."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = config_for("http://127.0.0.1:1")
        running = Running(replace(config, listen=Listen(front_port=0, gpu_ports=(0, port))))
        with pytest.raises(StartError, match=str(port)):
            await running.task
    for bound in running.app.server.bound:
        with pytest.raises(AskError):
            await asker(f"http://127.0.0.1:{bound.port}")("/health")


def test_the_backends_port_is_looked_at_before_anything_starts():
    """Somebody on it: the error names the port and the ways out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        other.listen()
        with pytest.raises(StartError, match=r"--no-backend") as caught:
            check_free(url)
        assert str(other.getsockname()[1]) in str(caught.value)
    check_free(url)


def test_addresses_of_the_sixth_protocol_are_shown_in_brackets():
    """So that they can be copied into a browser; without known devices a line has none."""
    fleet = Fleet(1)
    fleet.members[0].backend_up("embedded 0.1.0")
    config = replace(Config(), listen=Listen(gpu_ports=(8181,)))
    lines = banner(config, [Bound("::1", 8180, None), Bound("::1", 8181, 0), Bound("127.0.0.1", 8181, 0)], fleet)
    assert lines[1] == "  GPU 0      http://[::1]:8181"
    assert "embedded 0.1.0" in lines[-1]


def test_without_uvloop_asyncios_own_loop_is_used(monkeypatch: pytest.MonkeyPatch):
    """Where uvloop does not exist the gateway runs all the same; these tests do so too."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
    monkeypatch.undo()
    factory = loop_factory()
    assert factory is not None
    loop = factory()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()
