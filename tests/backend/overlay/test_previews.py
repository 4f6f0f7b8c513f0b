"""A preview is encoded for those who see it, in its place among the events, or not at all."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from backend.context import in_job, in_lane
from backend.overlay.events import SocketTable, Target
from backend.overlay.patch import Patch
from backend.overlay.patches import previews


class Server:
    """ComfyUI's server, as far as previews go."""

    def __init__(self) -> None:
        self.sockets: Any = SocketTable(lambda lane, sid, message: (message,))
        self.messages: Any = asyncio.Queue()
        self.encoded: list[Any] = []

    async def send_image(self, image_data: Any, sid: Any = None) -> None:
        self.encoded.append((image_data, sid))

    async def send_image_with_metadata(self, image_data: Any, metadata: Any = None, sid: Any = None) -> None:
        self.encoded.append((image_data, metadata, sid))


def patched() -> tuple[Server, Any, Any]:
    """A server with the two patches, called as ComfyUI's ``send`` does."""
    first, second = (patch.replace(getattr(Server, patch.target.rpartition(".")[2])) for patch in previews.patches())
    return Server(), first, second


class Socket:
    async def send_bytes(self, message: bytes) -> None:
        pass


async def test_nobody_there_nothing_encoded() -> None:
    """Neither for a client that is not connected, nor for a GPU or a server without any."""
    server, image, described = patched()
    for sid in (None, "gone", Target(0, "gone"), Target(0, None)):
        await image(server, "picture", sid=sid)
        await described(server, "picture", {"node": 1}, sid=sid)
    assert server.encoded == []


async def test_whoever_is_there_sees_it() -> None:
    """By name, and as one of everybody; the arguments are as they came."""
    server, image, described = patched()
    with in_lane(0), in_job("job"):
        server.sockets["me"] = Socket()
    await image(server, "picture", sid=Target(0, "me"))
    await described(server, "picture", {"node": 1}, sid=Target(0, "me"))
    await image(server, "picture", sid=None)
    assert server.encoded == [
        ("picture", "me"), ("picture", {"node": 1}, "me"), ("picture", None),
    ]
    await image(server, "picture", sid=Target(1, None))
    assert len(server.encoded) == 3


async def test_a_server_that_is_behind_leaves_previews_out() -> None:
    """While events wait none is encoded; when they are sent, the next one is."""
    server, image, _ = patched()
    with in_lane(0):
        server.sockets["me"] = Socket()
    for _ in range(previews.BEHIND + 1):
        server.messages.put_nowait("event")
    await image(server, "picture", sid=Target(0, "me"))
    assert server.encoded == []
    server.messages.get_nowait()
    await image(server, "picture", sid=Target(0, "me"))
    assert len(server.encoded) == 1


@pytest.mark.parametrize("name", ["send_image", "send_image_with_metadata"])
def test_other_parameters_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that sends previews otherwise sends them as it likes."""
    module = SimpleNamespace(PromptServer=type("PromptServer", (), {name: lambda self, picture: None}))
    monkeypatch.setitem(__import__("sys").modules, "server", module)
    patch: Patch = next(one for one in previews.patches() if one.target.endswith(f".{name}"))
    misfit = patch.check()
    assert misfit is not None
    assert not misfit.required
