"""Random numbers per lane: torch's default generators as every lane's own.

Owns the torch names that draw without a generator of the caller's; what they draw from is in ``draws``, numpy and
``random`` in ``host_randomness``, ``torch.default_generator`` in its own module.
Values are those plain ComfyUI would draw; outside a lane nothing changes.
Knows nothing of queues, nodes or ComfyUI.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils import _device as default_device

from backend.lanes import Lane
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.patches import host_randomness
from backend.overlay.patches.default_generator import DefaultGenerator
from backend.overlay.patches.draws import Draws, LaneDraws

WHY: Final = "two lanes seeding and drawing at once would get each other's random numbers"

FACTORIES: Final = ("rand", "randn", "randint", "randperm", "normal")
LIKES: Final = ("rand_like", "randn_like", "randint_like")
OF_TENSOR: Final = ("bernoulli", "multinomial", "poisson", "binomial")
METHODS: Final = (
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "geometric_",
    "cauchy_",
    "log_normal_",
    "bernoulli",
    "multinomial",
)

# TorchScript finds builtins by the id of the function: a replacement must live as long as its entry there.
_scripted: Final[list[Any]] = []


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """Every random name of torch, numpy and ``random`` that works without a generator of the caller's.

    None for a single lane: it has the process's generators to itself, as plain ComfyUI does.
    """
    if len(lanes) == 1:
        return []
    # torch remembers which functions a default device applies to: that list must hold the originals.
    default_device._device_constructors()  # noqa: SLF001 (there is no public way)
    draws = LaneDraws(lanes)
    found = [Patch(f"torch:{name}", functools.partial(_factory, draws), WHY) for name in FACTORIES]
    found += [Patch(f"torch:{name}", functools.partial(_like, draws, name), WHY) for name in LIKES]
    found += [Patch(f"torch:{name}", functools.partial(_of_tensor, draws), WHY) for name in OF_TENSOR]
    found += [Patch(f"torch:Tensor.{name}", functools.partial(_of_tensor, draws), WHY) for name in METHODS]
    found.append(Patch("torch:default_generator", functools.partial(DefaultGenerator.over, draws.current), WHY))
    found += _state_patches(draws)
    found += _cuda_patches(draws)
    return found + host_randomness.patches(draws.current)


def _wrap(original: Any, replacement: Any) -> Any:
    """Give the replacement the name of the original, also for TorchScript."""
    replacement.__name__ = getattr(original, "__name__", "random")
    replacement.__doc__ = getattr(original, "__doc__", None)
    replacement.__wrapped__ = original
    builtins: Any = torch.jit._builtins  # noqa: SLF001 (TorchScript offers no other way to name a builtin)
    operator = builtins._find_builtin(original)  # noqa: SLF001 (as above)
    if operator is not None:
        builtins._register_builtin(replacement, operator)  # noqa: SLF001 (as above)
        _scripted.append(replacement)
    return replacement


def _own(draws: LaneDraws, kwargs: dict[str, Any]) -> Draws | None:
    """Whose numbers to draw; ``None`` when the caller brought a generator or there is no lane."""
    if torch.compiler.is_compiling():
        return None
    given = kwargs.get("generator")
    if given is None:
        return draws.current()
    if isinstance(given, DefaultGenerator):
        kwargs["generator"] = given.real()
    return None


def _target(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where a factory function will put its result."""
    if (device := kwargs.get("device")) is not None:
        return torch.device(device)
    if (out := kwargs.get("out")) is not None:
        return torch.device(out.device)
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.get_default_device()


def _factory(draws: LaneDraws, original: Callable[..., Any]) -> Any:
    def drawn(*args: Any, **kwargs: Any) -> Any:
        own = _own(draws, kwargs)
        if own is not None and (generator := own.for_device(_target(args, kwargs))) is not None:
            kwargs["generator"] = generator
        return original(*args, **kwargs)

    return _wrap(original, drawn)


def _of_tensor(draws: LaneDraws, original: Callable[..., Any]) -> Any:
    def drawn(*args: Any, **kwargs: Any) -> Any:
        own = _own(draws, kwargs)
        if own is not None:
            tensor = args[0] if args else kwargs.get("input")
            if isinstance(tensor, torch.Tensor) and (generator := own.for_device(tensor.device)) is not None:
                kwargs["generator"] = generator
        return original(*args, **kwargs)

    return _wrap(original, drawn)


def _like(draws: LaneDraws, name: str, original: Callable[..., Any]) -> Any:
    takes_generator = _takes_generator(original, name)

    def drawn(*args: Any, **kwargs: Any) -> Any:
        own = _own(draws, kwargs)
        if own is None:
            return original(*args, **kwargs)
        like = args[0] if args else kwargs["input"]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else like.device
        generator = own.for_device(device)
        if generator is None:
            return original(*args, **kwargs)
        if takes_generator:
            return original(*args, **kwargs, generator=generator)
        return _fill_like(name, generator, *args, **kwargs)

    return _wrap(original, drawn)


def _takes_generator(original: Callable[..., Any], name: str) -> bool:
    """Whether this torch's ``*_like`` takes a generator (newer ones do)."""
    bound = (2,) if name == "randint_like" else ()
    try:
        original(torch.empty(0), *bound, generator=torch.Generator())
    except TypeError:
        return False
    return True


def _fill_like(name: str, generator: torch.Generator, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The same values from the same two steps that torch itself takes: an empty tensor, then filled in place."""
    input_, *bounds = [kwargs.pop("input"), *args] if "input" in kwargs else args
    bounds += [kwargs.pop(key) for key in ("low", "high") if key in kwargs]
    grad = kwargs.pop("requires_grad", False)
    kwargs.pop("generator", None)
    result = torch.empty_like(input_, **kwargs)
    if name == "rand_like":
        result.uniform_(0, 1, generator=generator)
    elif name == "randn_like":
        result.normal_(0, 1, generator=generator)
    else:
        low, high = bounds if len(bounds) > 1 else (0, bounds[0])
        result.random_(int(low), int(high), generator=generator)
    return result.requires_grad_(grad)


def _state_patches(draws: LaneDraws) -> list[Patch]:
    """Seeds and states of the default CPU generator."""

    def redirect(use: Callable[..., Any]) -> Callable[[Any], Any]:
        def replace(original: Any) -> Any:
            @functools.wraps(original)
            def redirected(*args: Any, **kwargs: Any) -> Any:
                own = draws.current()
                return original(*args, **kwargs) if own is None else use(own, *args, **kwargs)

            return redirected

        return replace

    def fresh_seed(own: Draws) -> int:
        value = own.cpu.seed()
        own.seed(value)
        return value

    def fork(original: Any) -> Any:
        @functools.wraps(original)
        @contextmanager
        def forked(devices: Any = None, *args: Any, **kwargs: Any) -> Iterator[None]:
            own = draws.current()
            if own is not None and devices is None and kwargs.get("device_type") in {None, "cuda"}:
                devices = [own.device.index] if own.device.type == "cuda" else []
            with original(devices, *args, **kwargs):
                yield

        return forked

    return [
        # As torch does: any number that has an integer value is a seed.
        Patch("torch:manual_seed", redirect(lambda own, seed: own.seed(int(seed))), WHY, params("seed")),
        Patch("torch:seed", redirect(fresh_seed), WHY, params()),
        Patch("torch:initial_seed", redirect(lambda own: own.cpu.initial_seed()), WHY, params()),
        Patch("torch:get_rng_state", redirect(lambda own: own.cpu.get_state()), WHY, params()),
        Patch("torch:set_rng_state", redirect(lambda own, new_state: own.set_cpu_state(new_state)), WHY),
        Patch("torch.random:fork_rng", fork, "it would rewind every GPU's random numbers", params_start("devices")),
    ]


def _on_own_gpu(draws: LaneDraws, use: Callable[..., None]) -> Callable[[Any], Any]:
    """For functions that change CUDA generators: from a lane only its own, and on the CPU none."""

    def replace(original: Any) -> Any:
        @functools.wraps(original)
        def redirected(*args: Any, **kwargs: Any) -> Any:
            own = draws.current()
            if own is None:
                return original(*args, **kwargs)
            if (cuda := own.cuda()) is not None:
                use(own, cuda, *args, **kwargs)
            return None

        return redirected

    return replace


def _read_cuda(draws: LaneDraws, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def get_rng_state(device: Any = "cuda") -> Any:
        own = draws.current()
        cuda = None if own is None else own.cuda()
        if own is None or cuda is None or not own.is_own(device):
            return original(device)
        return cuda.get_state()

    return get_rng_state


def _read_all_cuda(draws: LaneDraws, original: Callable[[], Any]) -> Any:
    @functools.wraps(original)
    def get_rng_state_all() -> Any:
        own, found = draws.current(), original()
        if own is not None and (cuda := own.cuda()) is not None:
            found[own.device.index] = cuda.get_state()
        return found

    return get_rng_state_all


def _cuda_patches(draws: LaneDraws) -> list[Patch]:
    """Seeds and states of the CUDA generators."""

    def seed(own: Draws, cuda: torch.Generator, seed: int) -> None:
        own.seed_cuda(int(seed))

    def fresh(own: Draws, cuda: torch.Generator) -> None:
        cuda.seed()

    def write(own: Draws, cuda: torch.Generator, new_state: torch.Tensor, device: Any = "cuda") -> None:
        if own.is_own(device):
            own.set_cuda_state(new_state)

    def write_all(own: Draws, cuda: torch.Generator, new_states: Sequence[torch.Tensor]) -> None:
        own.set_cuda_state(new_states[own.device.index])

    writes: dict[str, Callable[..., None]] = {
        "manual_seed": seed,
        "manual_seed_all": seed,
        "seed": fresh,
        "seed_all": fresh,
        "set_rng_state": write,
        "set_rng_state_all": write_all,
    }
    why = "a lane would rewind the random numbers of other GPUs"
    found = [Patch(f"torch.cuda:{name}", _on_own_gpu(draws, use), why) for name, use in writes.items()]
    return [
        *found,
        Patch("torch.cuda:get_rng_state", functools.partial(_read_cuda, draws), why),
        Patch("torch.cuda:get_rng_state_all", functools.partial(_read_all_cuda, draws), why),
    ]
