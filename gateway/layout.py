"""Which backends there are and which GPUs each of them has, out of the configuration.

Pure. Owns the numbering: GPUs count through the backends in the order of their tables, and a backend counts its own
from 0. Must never know whether any of them is there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from gateway.config import Backend, Config


@dataclass(frozen=True)
class Place:
    """One backend process. ``first`` is the number under which users know its first GPU."""

    index: int
    first: int
    lanes: int
    backend: Backend
    """Its settings: those of its table, with what is its own alone."""
    instance: int | None = None
    """Which of the processes it is that one table in ``per-gpu`` mode stands for; ``None``: the only one."""

    @property
    def gpus(self) -> range:
        """Its GPUs, as users number them."""
        return range(self.first, self.first + self.lanes)


def layout(config: Config) -> tuple[Place, ...]:
    """Every backend process there is to be; raises ``ValueError`` with a line for the user when they do not fit."""
    lanes = lanes_of(config)
    if sum(lanes) != config.gpus:
        raise ValueError(
            f"the backends have {' + '.join(map(str, lanes))} lanes, but [listen] gpu_ports has {config.gpus} ports"
        )
    places: list[Place] = []
    first = 0
    for backend, count in zip(config.backends, lanes, strict=True):
        if backend.mode == "per-gpu":
            for number in range(count):
                places.append(Place(len(places), first + number, 1, _alone(backend, number), number))
        else:
            places.append(Place(len(places), first, count, backend))
        first += count
    return tuple(places)


def lanes_of(config: Config) -> list[int]:
    """The number of GPUs behind each backend of the file."""
    if not config.further:
        return [config.backend.lanes or config.gpus]
    return [backend.lanes or len(backend.devices) or 1 for backend in config.backends]


def together(places: Iterable[Place]) -> bool:
    """Whether all backends work in the same folders, as far as the configuration shows it."""
    return len({(place.backend.start, place.backend.comfyui, place.backend.data, place.backend.args)
                for place in places}) == 1 and all(place.backend.start for place in places)  # fmt: skip


def _alone(backend: Backend, number: int) -> Backend:
    """The settings of the process for one of a table's GPUs."""
    devices = backend.devices[number : number + 1]
    return replace(backend, url=_port_after(backend.url, number), devices=devices, lanes=1)


def _port_after(url: str, number: int) -> str:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{(parts.port or 80) + number}" if number else url
