"""What a setting accepts: the forms of single values and their bounds, by name.

Pure. ``config.py`` says which setting has which form; ``settings/values.py`` reads them.
"""

from dataclasses import dataclass
from typing import Annotated

MB = 1024 * 1024

MOST_GPUS = 64


@dataclass(frozen=True)
class Spec:
    """What a setting accepts: ``form`` names the reader of its text, the rest are bounds (both ends included)."""

    form: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()


Flag = Annotated[bool, Spec("flag")]
Text = Annotated[str, Spec("text")]
Host = Annotated[str, Spec("host")]
Url = Annotated[str, Spec("url")]
Network = Annotated[str, Spec("network")]
Port = Annotated[int, Spec("count", 0, 65535)]
Count = Annotated[int, Spec("count", 1, 10_000_000)]
Delay = Annotated[int | None, Spec("count", 0, 10_000_000)]
Burst = Annotated[int, Spec("count", 0, 10_000_000)]
Size = Annotated[int, Spec("size", 1, 1 << 40)]
HeadSize = Annotated[int, Spec("size", 1024, 16 * MB)]
Seconds = Annotated[float, Spec("seconds", 0.001, 30 * 86_400)]
PerSecond = Annotated[float, Spec("rate", 0.001, 1_000_000)]
LimitKey = Annotated[str, Spec("choice", choices=("client", "gpu"))]
LimitScope = Annotated[str, Spec("choice", choices=("cost", "all"))]
Mode = Annotated[str, Spec("choice", choices=("single", "per-gpu", "auto"))]
Lanes = Annotated[int, Spec("count", 0, MOST_GPUS)]
Share = Annotated[float, Spec("rate", 0.001, 1000)]
Stay = Annotated[str, Spec("choice", choices=("auto", "stick", "free"))]
Resubmit = Annotated[str, Spec("choice", choices=("all", "pending-only"))]
IssueLock = Annotated[str, Spec("choice", choices=("auto", "on", "off"))]
ShareWeights = Annotated[str, Spec("choice", choices=("on", "strict", "off"))]
LogFormat = Annotated[str, Spec("choice", choices=("text", "json"))]
Level = Annotated[str, Spec("choice", choices=("debug", "info", "warning", "error"))]
