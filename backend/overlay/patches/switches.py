"""Process-wide switches that a node sets for itself: PyTorch's numerics, the preview method, Pillow's tolerance.

Owns what they were before the first job, and putting them back. Attention's backends are not among them: ComfyUI
itself sets those at each call. Knows nothing of queues or models.
"""

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from backend.context import PerLane, current_job, current_lane
from backend.lanes import Lane
from backend.overlay.patch import Patch, params
from backend.overlay.patches import settings
from backend.overlay.serialize import packs_used

log = logging.getLogger("backend.overlay.switches")

UNKNOWN: Final = object()
"""The value of a switch this torch does not have, or will not tell."""

BACKEND_SWITCHES: Final = (
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.allow_tf32",
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
)


class Switch:
    """One process-wide setting: its name for the log, how it is read and how it is set."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.name = name
        self._read = read
        self.write = write

    def read(self) -> Any:
        """The value now, or ``UNKNOWN``."""
        try:
            return self._read()
        except (AttributeError, RuntimeError):
            # Newer torch refuses to tell a setting in the old words after it was set in the new ones.
            return UNKNOWN


def torch_switches() -> list[Switch]:
    """Everything PyTorch keeps once per process that changes other jobs' numbers."""
    found = [_backend(name) for name in BACKEND_SWITCHES]
    return [
        *found,
        Switch("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Switch("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Switch(
            "deterministic algorithms",
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
    ]


def _backend(path: str) -> Switch:
    *parents, name = path.split(".")

    def owner() -> Any:
        return functools.reduce(getattr, parents, torch.backends)

    return Switch(f"torch.backends.{path}", lambda: getattr(owner(), name), lambda value: setattr(owner(), name, value))


class Keeper:
    """Puts changed switches back before a job starts, and says who may have changed them; thread-safe.

    A change counts when it is still there at the second look: code that changes a switch for the length of a block
    would be broken by having it put back inside.
    """

    def __init__(self, switches: Sequence[Switch]) -> None:
        self._switches = switches
        self._lock = threading.Lock()
        self._initial: list[Any] | None = None
        self._seen: dict[str, Any] = {}
        self._running: list[frozenset[str]] = []
        self._suspects: set[str] = set()

    def started(self, packs: frozenset[str]) -> list[str]:
        """A job that uses ``packs`` starts; returns the names of the switches that were put back for it."""
        with self._lock:
            found = self._look(restore=True)
            if found:
                who = ", ".join(sorted(self._suspects)) or "a node"
                log.warning("put back for all GPUs: %s (changed by %s)", ", ".join(found), who)
            if not self._running and not self._seen:
                self._suspects.clear()
            self._running.append(packs)
            self._suspects |= packs
            return found

    def ended(self, packs: frozenset[str]) -> None:
        """A job that uses ``packs`` is over."""
        with self._lock:
            self._running.remove(packs)
            self._look(restore=False)

    def _look(self, restore: bool) -> list[str]:
        values = [switch.read() for switch in self._switches]
        if self._initial is None:
            self._initial = values
        found = []
        seen: dict[str, Any] = {}
        for switch, value, initial in zip(self._switches, values, self._initial, strict=True):
            if value is UNKNOWN or initial is UNKNOWN or value == initial:
                continue
            again = switch.name in self._seen and self._seen[switch.name] == value
            if restore and (again or not self._running):
                switch.write(initial)
                found.append(f"{switch.name} = {initial} (was {value})")
            else:
                seen[switch.name] = value
        self._seen = seen
        return found


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """A look at the switches around each job; the preview method per lane; Pillow's tolerance and settings unmixed."""
    keeper = Keeper(torch_switches())
    return [
        Patch(
            "execution:PromptExecutor.execute",
            functools.partial(_execute, keeper),
            "a switch that a node leaves changed changes other clients' pictures",
            params("self", "prompt", "prompt_id", "extra_data", "execute_outputs"),
        ),
        Patch(
            "comfy.cli_args:args.__class__",
            _preview_per_lane,
            "one job's preview method would become every GPU's",
        ),
        Patch(
            "node_helpers:pillow",
            _pillow,
            "two broken pictures at once would leave Pillow tolerant for good",
            params("fn", "arg"),
            required=False,
        ),
        *settings.patches(),
    ]


def _execute(keeper: Keeper, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def execute(self: Any, prompt: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        import nodes  # type: ignore[import-not-found]  # noqa: PLC0415 (ComfyUI's; loaded by then)

        packs = packs_used(prompt, nodes.NODE_CLASS_MAPPINGS)
        keeper.started(packs)
        try:
            return original(self, prompt, *args, **kwargs)
        finally:
            keeper.ended(packs)

    return execute


def _preview_per_lane(original: type) -> type:
    values: PerLane[Any] = PerLane(lambda: UNKNOWN)

    def get(self: Any) -> Any:
        own = values.get() if current_lane() is not None else UNKNOWN
        if own is not UNKNOWN:
            return own
        try:
            return self.__dict__["preview_method"]
        except KeyError:
            raise AttributeError("preview_method") from None

    def put(self: Any, value: Any) -> None:
        # A request sets it for everybody, a running job for its lane.
        if current_lane() is not None and current_job() is not None:
            values.set(value)
        else:
            self.__dict__["preview_method"] = value

    return type(original.__name__, (original,), {"preview_method": property(get, put)})


def _pillow(original: Callable[..., Any]) -> Any:
    lock = threading.Lock()

    @functools.wraps(original)
    def pillow(fn: Callable[[Any], Any], arg: Any) -> Any:
        try:
            return fn(arg)
        except (OSError, ValueError):
            # The original tries once more and then again with Pillow told to be tolerant.
            with lock:
                return original(fn, arg)

    return pillow
