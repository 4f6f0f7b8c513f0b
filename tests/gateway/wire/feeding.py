"""Every case of a parser runs whole, byte by byte, cut anywhere, and with something behind it."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def feed_every_way(data: bytes, read: Callable[[list[bytes]], T]) -> T:
    """Read ``data`` in pieces of all kinds; the results must be equal, and the common one is returned."""
    results = [read(pieces) for pieces in every_way(data)]
    for result in results[1:]:
        assert result == results[0]
    return results[0]


def every_way(data: bytes) -> Iterator[list[bytes]]:
    """The pieces: whole, single bytes, and every cut in two."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
