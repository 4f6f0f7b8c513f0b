"""``python -m bench.overheads``: what lanes are spared of what each would do by itself; in turns, as medians.

Attention's order of backends (asked for once or at every call), a garbage collection beside loaded models, the encoding
of previews (on the event loop, in a thread, or not at all). Needs no GPU and no ComfyUI; measures and judges nothing.
"""

import asyncio
import contextlib
import gc
import io
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from backend.overlay.patches import previews
from backend.overlay.patches.attention import Once

ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ROUNDS = 15
CALLS = 500
PREVIEWS_A_SECOND = 40
"""Four lanes at ten steps a second."""


def attention() -> None:
    """Microseconds of an attention call that is itself next to nothing."""
    q = torch.zeros(1, 1, 4, 8)

    def with_order(context: Callable[..., Any]) -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            with context(ORDER, set_priority=True):
                scaled_dot_product_attention(q, q, q)
        return (time.perf_counter() - began) / CALLS * 1e6

    once = Once(sdpa_kernel)
    with torch.inference_mode():
        pairs = [(with_order(sdpa_kernel), with_order(once)) for _ in range(ROUNDS)]
    once.close()
    each, spared = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"attention call: {each:.1f} µs with the order asked for each time, {spared:.1f} µs once")


def collections() -> None:
    """Milliseconds of a collection beside so many modules, which are made after the start and so not frozen."""
    gc.collect()
    gc.freeze()
    kept: list[torch.nn.Module] = []
    for count in (0, 2000, 8000):
        with torch.device("meta"):
            kept += [torch.nn.Linear(8, 8) for _ in range(count - len(kept))]
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            gc.collect()
            took.append(time.perf_counter() - began)
        print(f"collection beside {count} modules: {statistics.median(took) * 1e3:.1f} ms; all lanes stand still in it")
    gc.unfreeze()


class Server:
    """Sends previews as ComfyUI's server does: encodes, then hands the bytes over."""

    def __init__(self) -> None:
        self.sockets = {"client": None}
        self.messages = SimpleNamespace(qsize=lambda: 0)
        self.sent = 0

    async def send_bytes(self, event: Any, data: Any, sid: Any = None) -> None:
        self.sent += 1

    async def send_image(self, image_data: Any, sid: Any = None) -> None:
        stream = io.BytesIO()
        image_data[1].resize((512, 512), Image.Resampling.BILINEAR).save(stream, format="JPEG", quality=95)
        await self.send_bytes(1, stream.getvalue(), sid=sid)


async def late(send: Callable[..., Any], server: Server, seconds: float = 2.0) -> list[float]:
    """Milliseconds by which a timer of the event loop is late, every one of many, while previews are sent."""
    picture = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    found: list[float] = []
    until = time.perf_counter() + seconds

    async def previews_come() -> None:
        while time.perf_counter() < until:
            await send(server, ("JPEG", picture, 512), "client")
            await asyncio.sleep(1 / PREVIEWS_A_SECOND)

    async def somebody_asks() -> None:
        while (began := time.perf_counter()) < until:
            await asyncio.sleep(0.001)
            found.append((time.perf_counter() - began) * 1e3 - 1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(previews_come(), name="previews")
        tasks.create_task(somebody_asks(), name="requests")
    return found


async def in_a_thread(server: Server, image_data: Any, sid: Any) -> None:
    """The same encoding, with the event loop free for others as far as Python lets it be."""

    def encode() -> bytes:
        catch = Server()
        sent: list[bytes] = []

        async def keep(event: Any, data: Any, sid: Any = None) -> None:
            sent.append(data)

        catch.send_bytes = keep  # type: ignore[method-assign]
        with contextlib.suppress(StopIteration):
            catch.send_image(image_data, sid).send(None)
        return sent[0]

    await server.send_bytes(1, await asyncio.to_thread(encode), sid)


def encoding() -> None:
    """How late the event loop is while it encodes, while a thread does, and while nobody needs to."""

    patched = previews.patches()[0].replace(Server.send_image)

    async def unseen(server: Server, image_data: Any, sid: Any) -> None:
        server.sockets.clear()
        await patched(server, image_data, sid=sid)

    ways = {"on the event loop": Server.send_image, "in a thread": in_a_thread, "for nobody, so not at all": unseen}
    columns: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            columns[name] += asyncio.run(late(way, Server()))
    for name, found in columns.items():
        found.sort()
        mean, high = statistics.fmean(found), found[int(len(found) * 0.99)]
        print(f"{PREVIEWS_A_SECOND} previews a second, {name}: the loop is late by {mean:.2f} ms, p99 {high:.2f} ms")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    attention()
    collections()
    encoding()


if __name__ == "__main__":
    main()
