"""``PromptServer``: what it keeps once becomes one per lane, its sockets the shared tables, its events addressed.

Owns which attributes those are. ComfyUI's routes and ``send`` functions stay as they are: they look these up when
they run, and so find those of the lane that their request or job belongs to.
"""

import functools
from collections.abc import Callable
from typing import Any

from backend.context import PerLane, current_lane, in_sight
from backend.overlay import routing
from backend.overlay.events import address
from backend.overlay.observe import observe
from backend.overlay.patch import Patch, absent, params
from backend.overlay.state import State


def patches(state: State) -> list[Patch]:
    """The server's patches; ``state.server`` is set when ComfyUI makes its server."""
    version = state.version
    return [
        Patch(
            "server:PromptServer.__init__",
            functools.partial(_init, state),
            "the tables of sockets are kept by (GPU, client); requests get their GPU; routes over all GPUs are added",
            shape=params(*version.server_init),
        ),
        Patch(
            "server:PromptServer.prompt_queue",
            lambda _: _queue(state),
            "routes, nodes and the status see the queue of their GPU, or all queues as one",
            shape=absent,
        ),
        Patch(
            "server:PromptServer.client_id",
            lambda _: _slot(state.client_id, "The client whose job the lane runs."),
            "with one value, all events go to the client whose job started last",
            shape=absent,
        ),
        Patch(
            "server:PromptServer.last_node_id",
            lambda _: _slot(state.last_node_id, "The node the lane is at."),
            "a client that reconnects is told the node of its own GPU",
            shape=absent,
        ),
        Patch(
            "server:PromptServer.last_prompt_id",
            lambda _: _slot(state.last_prompt_id, "The job the lane runs."),
            "progress from a node's helper threads is labelled with this",
            shape=absent,
        ),
        Patch(
            "server:PromptServer.send_sync",
            functools.partial(_send_sync, state),
            "an event remembers which GPU's job it came from until it is sent; observers hear it, too",
            shape=params(*version.send_sync),
        ),
        Patch(
            "server:PromptServer.start_multi_address",
            functools.partial(_listening, state),
            "the ready line is printed when the port answers",
        ),
    ]


def _init(state: State, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (its name there)
        state.server = self
        original(self, *args, **kwargs)
        self.sockets = state.sockets
        self.sockets_metadata = state.sockets_metadata
        routing.install(state, self)

    return __init__


def _queue(state: State) -> property:
    def get(self: Any) -> Any:
        return state.queues.of(current_lane())

    def put(self: Any, value: Any) -> None:
        state.adopt_queue(value, self)

    return property(get, put, doc="The queue of the current lane, or all of them as one.")


def _slot(slot: PerLane[Any], doc: str) -> property:
    def get(self: Any) -> Any:
        return slot.of(in_sight()[0])

    def put(self: Any, value: Any) -> None:
        slot.set(value)

    return property(get, put, doc=doc)


def _send_sync(state: State, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def send_sync(self: Any, event: Any, data: Any, sid: Any = None) -> None:
        original(self, event, data, address(sid))
        if state.observers:
            observe(state, event, data)

    return send_sync


def _listening(state: State, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def start_multi_address(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)
        state.listening.set()

    return start_multi_address
