"""Schedules fall, steps reach the picture, and noise belongs to its seed."""

import itertools
import math

import pytest
import torch

from backend.embedded import samplers

SHAPE = torch.Size((1, 4, 8, 8))


def perfect(picture: torch.Tensor):
    """A denoiser that always knows the picture."""
    return lambda x, sigma: picture.expand_as(x)


@pytest.mark.parametrize("name", samplers.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
def test_schedules_fall_to_zero(name: str, steps: int):
    """One more sigma than steps, each below the last, the last 0."""
    found = samplers.sigmas(name, steps)
    assert len(found) == steps + 1
    assert found[-1] == 0.0
    assert all(high > low for high, low in itertools.pairwise(found))
    assert all(math.isfinite(value) for value in found)


def test_the_trained_noise_is_stable_diffusions():
    """The ends of SD's own noise table, as published with it."""
    found = samplers.trained_sigmas()
    assert found[0] == pytest.approx(0.0292, abs=1e-4)
    assert found[-1] == pytest.approx(14.6146, abs=1e-3)


def test_denoise_takes_the_end_of_a_longer_schedule():
    """Half the strength starts at the noise of the middle; none does nothing."""
    whole, half = samplers.sigmas("normal", 20), samplers.sigmas("normal", 10, 0.5)
    assert half == whole[-11:]
    assert samplers.sigmas("normal", 10, 0.0) == []


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_reaches_a_known_picture(name: str):
    """With a denoiser that knows the picture, every walk ends at it, and every step is told."""
    picture = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    told: list[int] = []
    found = samplers.sample(
        perfect(picture), torch.zeros(SHAPE), 7, 9, name, "karras", 1.0, lambda step, now: told.append(step)
    )
    assert torch.allclose(found, picture.expand(SHAPE), atol=1e-4)
    assert told == list(range(1, 10))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_linear_denoiser_shrinks_noise_as_it_should(name: str):
    """For pictures of unit variance the best denoiser is x / (1 + sigma²); walks end finite and of that size."""
    found = samplers.sample(
        lambda x, sigma: x / (1 + sigma**2), torch.zeros((1, 4, 64, 64)), 3, 30, name, "karras", 1.0, lambda *_: None
    )
    assert 0.5 < float(found.std()) < 1.3


@pytest.mark.parametrize("scheduler", samplers.SCHEDULERS)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_more_steps_than_were_trained(name: str, scheduler: str):
    """Beyond 1000 steps, where schedules repeat themselves, walks still end at a finite picture."""
    found = samplers.sample(
        lambda x, sigma: x / (1 + sigma**2), torch.zeros((1, 4, 2, 2)), 3, 1100, name, scheduler, 1.0, lambda *_: None
    )
    assert bool(found.isfinite().all())


def test_the_seed_makes_the_picture():
    """The same seed gives the same bytes, another seed others, and the process-wide generator is left alone."""

    def run(seed: int) -> bytes:
        found = samplers.sample(
            lambda x, sigma: x / (1 + sigma**2), torch.zeros(SHAPE), seed, 6, "euler_ancestral", "normal", 1.0,
            lambda *_: None,
        )  # fmt: skip
        return found.numpy().tobytes()

    before = torch.get_rng_state()
    assert run(5) == run(5)
    assert run(5) != run(6)
    assert run(0xFFFFFFFFFFFFFFFF) == run(0xFFFFFFFFFFFFFFFF)
    assert torch.equal(before, torch.get_rng_state())


def test_without_strength_the_latent_is_untouched():
    """denoise 0 returns what came."""
    latent = torch.ones(SHAPE)
    assert samplers.sample(perfect(latent), latent, 1, 5, "euler", "normal", 0.0, lambda *_: None) is latent
