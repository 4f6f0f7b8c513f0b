"""``bench``: what the gateway adds to a small request, measured beside the backend itself, in turns, on this machine.

Owns the figures and their words. It asks for a GPU's queue, which every backend shows; no job is submitted.
"""

import http.client
import time
from collections.abc import Iterator, Sequence
from statistics import median, quantiles
from typing import Final
from urllib.parse import urlsplit

from gateway.tools.door import Door, ToolError, silent

TARGET: Final = "/queue"
WARM: Final = 5
"""Requests before those that count: connections, caches and code paths are ready then."""


def bench(door: Door, backend: str, *, gpu: int, requests: int) -> Iterator[str]:
    """Lines with median and 99th percentile of both ways; raises ``ToolError``. ``backend`` is its URL."""
    ways = [(door.kept(), f"/gpu{gpu}{TARGET}", door.headers)]
    if (direct := _connection(backend)) is not None:
        ways.append((direct, TARGET, {}))
    times: list[list[float]] = [[] for _ in ways]
    try:
        for number in range(WARM + requests):
            for at, (connection, target, headers) in enumerate(ways):
                seconds = _one(connection, target, headers)
                if number >= WARM:
                    times[at].append(seconds)
    finally:
        for connection, _, _ in ways:
            connection.close()
    yield from told([("through the gateway", times[0]), *[("the backend itself", each) for each in times[1:]]])
    if direct is None:
        yield f"the backend at {backend} is no HTTP address that can be asked beside it"


def told(ways: Sequence[tuple[str, Sequence[float]]]) -> Iterator[str]:
    """A line for each way, from seconds, and what the first adds to the second."""
    width = max(len(name) for name, _ in ways)
    for name, seconds in ways:
        p99 = quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
        yield f"{name:{width}}  median {_ms(median(seconds))}  p99 {_ms(p99)}  ({len(seconds)} requests)"
    if len(ways) > 1:
        yield f"{'the gateway adds':{width}}  median {_ms(median(ways[0][1]) - median(ways[1][1]))}"


def _one(connection: http.client.HTTPConnection, target: str, headers: dict[str, str]) -> float:
    began = time.perf_counter()
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise silent(f"{connection.host}:{connection.port}", error) from error
    if answer.status == 429:
        raise ToolError("the gateway limits reads to fewer than that; ask for fewer --requests, or wait a little")
    if answer.status != 200:
        raise ToolError(f"GET {target} was answered with {answer.status}")
    return time.perf_counter() - began


def _connection(url: str) -> http.client.HTTPConnection | None:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=60)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
