"""What the user sees once everything is ready.

Pure.
"""

from collections.abc import Sequence

from gateway.build import version
from gateway.config import Config
from gateway.fleet.lanes import Fleet
from gateway.layout import layout
from gateway.server import Bound


def banner(config: Config, bound: Sequence[Bound], fleet: Fleet) -> list[str]:
    """What the user sees once everything is ready: one address of each GPU, the front door's, and the backend."""
    scheme = "https" if config.tls.certificate else "http"
    first: dict[int | None, str] = {}
    for at in bound:
        host = f"[{at.host}]" if ":" in at.host else at.host
        first.setdefault(at.gpu, f"{scheme}://{host}:{at.port}")
    devices: list[str] = []
    for member in fleet.members:
        devices += [*member.devices, *[""] * member.gpus][: member.gpus]
    return [
        f"comfy-gateway {version()} is ready",
        *(f"  GPU {gpu:<6} {first[gpu]}   {devices[gpu]}".rstrip() for gpu in range(config.gpus)),
        f"  front door {first[None]}   least busy GPU; /gpu0/ ... /queue/all /health /metrics",
        *(
            f"  backend    {fleet.members[place.index].body or 'not there yet'} at {place.backend.url}"
            for place in layout(config)
        ),
    ]
