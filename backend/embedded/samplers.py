"""Noise schedules and the steps that walk them, under ComfyUI's names.

Pure functions of their arguments: every random number comes from the generator handed in. Schedules follow
Stable Diffusion's scaled-linear noise (1000 steps, beta 0.00085 … 0.012); ``sigma`` is the noise's standard
deviation. Steps follow Karras et al. 2022 (euler, heun, dpm_2 and churn) and Lu et al. 2022 (DPM-Solver++).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

TRAINED_STEPS: Final = 1000
KARRAS_RHO: Final = 7.0

Denoise = Callable[[Tensor, float], Tensor]
"""(noised latent, sigma) → clean latent."""
Callback = Callable[[int, Tensor], None]
"""(steps done, clean latent as it looks now); may raise to stop."""


def trained_sigmas() -> list[float]:
    """Sigma of each training step, rising from about 0.029 to 14.6."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    kept, found = 1.0, []
    for step in range(TRAINED_STEPS):
        beta = (low + (high - low) * step / (TRAINED_STEPS - 1)) ** 2
        kept *= 1.0 - beta
        found.append(math.sqrt((1.0 - kept) / kept))
    return found


_SIGMAS: Final = trained_sigmas()
_MIN, _MAX = _SIGMAS[0], _SIGMAS[-1]


def _at(step: float) -> float:
    """Sigma at a fractional training step, interpolated in its logarithm."""
    low = min(int(step), TRAINED_STEPS - 1)
    high = min(low + 1, TRAINED_STEPS - 1)
    part = step - low
    return math.exp((1 - part) * math.log(_SIGMAS[low]) + part * math.log(_SIGMAS[high]))


def _spread(count: int, first: float, last: float) -> list[float]:
    if count == 1:
        return [first]
    return [first + (last - first) * index / (count - 1) for index in range(count)]


def _normal(steps: int) -> list[float]:
    return [_at(step) for step in _spread(steps, TRAINED_STEPS - 1, 0)]


def _sgm_uniform(steps: int) -> list[float]:
    return [_at(step) for step in _spread(steps + 1, TRAINED_STEPS - 1, 0)[:-1]]


def _simple(steps: int) -> list[float]:
    return [_SIGMAS[-(1 + int(index * TRAINED_STEPS / steps))] for index in range(steps)]


def _ddim_uniform(steps: int) -> list[float]:
    return [_SIGMAS[int(index * TRAINED_STEPS / steps)] for index in reversed(range(steps))]


def _karras(steps: int) -> list[float]:
    rho = 1.0 / KARRAS_RHO
    return [value**KARRAS_RHO for value in _spread(steps, _MAX**rho, _MIN**rho)]


def _exponential(steps: int) -> list[float]:
    return [math.exp(value) for value in _spread(steps, math.log(_MAX), math.log(_MIN))]


def _kl_optimal(steps: int) -> list[float]:
    return [math.tan(angle) for angle in _spread(steps, math.atan(_MAX), math.atan(_MIN))]


SCHEDULERS: Final[dict[str, Callable[[int], list[float]]]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": _karras,
    "exponential": _exponential,
    "ddim_uniform": _ddim_uniform,
    "normal": _normal,
    "kl_optimal": _kl_optimal,
}


def sigmas(scheduler: str, steps: int, denoise: float = 1.0) -> list[float]:
    """Falling sigmas, ``steps`` + 1 of them, the last 0; ``denoise`` < 1 takes the end of a longer schedule.

    ``denoise`` 0 gives none at all: nothing is to be done.
    """
    if denoise <= 0.0 or steps < 1:
        return []
    whole = steps if denoise > 0.9999 else max(int(steps / denoise), steps)
    return [*SCHEDULERS[scheduler](whole), 0.0][-(steps + 1) :]


@dataclass(frozen=True)
class Walk:
    """One sampling: from ``x``, noised by ``sigmas[0]``, down to 0."""

    x: Tensor
    sigmas: list[float]
    denoise: Denoise
    noise: Callable[[], Tensor]
    """Fresh noise of the latent's shape."""
    callback: Callback


def _ancestral(now: float, then: float) -> tuple[float, float]:
    """Where to step to, and how much fresh noise takes it up to ``then`` again."""
    if then == 0.0:
        return 0.0, 0.0
    up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
    return math.sqrt(max(then**2 - up**2, 0.0)), up


def euler(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        x = x + (x - clean) / now * (then - now)
        walk.callback(step + 1, clean)
    return x


def euler_ancestral(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        down, up = _ancestral(now, then)
        x = x + (x - clean) / now * (down - now)
        if up > 0.0:
            x = x + walk.noise() * up
        walk.callback(step + 1, clean)
    return x


def heun(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        slope = (x - clean) / now
        ahead = x + slope * (then - now)
        if then > 0.0:
            slope = (slope + (ahead - walk.denoise(ahead, then)) / then) / 2
            ahead = x + slope * (then - now)
        x = ahead
        walk.callback(step + 1, clean)
    return x


def dpm_2(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        slope = (x - clean) / now
        if then > 0.0:
            middle = math.sqrt(now * then)
            half = x + slope * (middle - now)
            slope = (half - walk.denoise(half, middle)) / middle
        x = x + slope * (then - now)
        walk.callback(step + 1, clean)
    return x


def dpmpp_2s_ancestral(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        down, up = _ancestral(now, then)
        if down == 0.0:
            x = clean
        else:
            middle = math.sqrt(now * down)
            half = (middle / now) * x + (1.0 - middle / now) * clean
            x = (down / now) * x + (1.0 - down / now) * walk.denoise(half, middle)
        if up > 0.0:
            x = x + walk.noise() * up
        walk.callback(step + 1, clean)
    return x


def dpmpp_2m(walk: Walk) -> Tensor:
    x, last, last_h = walk.x, None, 0.0
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        clean = walk.denoise(x, now)
        if then == 0.0:
            x = clean
        elif then < now:  # beyond 1000 steps some schedules repeat a sigma: nothing to walk
            h = math.log(now / then)
            aim = clean
            if last is not None:
                ratio = last_h / h
                aim = (1 + 1 / (2 * ratio)) * clean - (1 / (2 * ratio)) * last
            x = (then / now) * x - math.expm1(-h) * aim
            last, last_h = clean, h
        walk.callback(step + 1, clean)
    return x


def lcm(walk: Walk) -> Tensor:
    x = walk.x
    for step, (now, then) in enumerate(zip(walk.sigmas, walk.sigmas[1:], strict=False)):
        x = clean = walk.denoise(x, now)
        if then > 0.0:
            x = x + walk.noise() * then
        walk.callback(step + 1, clean)
    return x


SAMPLERS: Final[dict[str, Callable[[Walk], Tensor]]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
    "ddim": euler,  # with no added noise, DDIM in these coordinates is the Euler step
}


def noise_like(shape: torch.Size, seed: int) -> Callable[[], Tensor]:
    """A source of noise of its own for each call here: the process-wide generator is never touched."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float32)


def sample(
    denoise: Denoise, latent: Tensor, seed: int, steps: int, sampler: str, scheduler: str,
    strength: float, callback: Callback,
) -> Tensor:  # fmt: skip
    """Noise ``latent`` by ``seed`` and walk it clean again; ``strength`` is ComfyUI's ``denoise``, 0 … 1."""
    path = sigmas(scheduler, steps, strength)
    if not path:
        return latent
    first = noise_like(latent.shape, seed)
    more = noise_like(latent.shape, (seed + 1) % (1 << 64))
    x = latent + first().to(latent.device) * path[0]
    return SAMPLERS[sampler](Walk(x, path, denoise, lambda: more().to(latent.device), callback))
