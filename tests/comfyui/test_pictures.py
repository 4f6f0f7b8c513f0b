"""Same seed, same picture: whatever runs on the other lanes, every byte is what plain ComfyUI makes alone."""

import itertools

import pytest

from tests.comfyui import scenarios, workflows
from tests.comfyui.conftest import Site
from tests.comfyui.scenarios import Verdict

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

NOISE = ("torch", "torch_like", "torch_inplace", "torch_returned", "torch_perm", "numpy", "python", "thread", "async")

BEYOND = ("dropout", "rrelu", "dirichlet", "scipy", "default_generator")


def accept(name: str, verdict: Verdict) -> None:
    print(f"\n{name}: {verdict}")
    assert not verdict.problems, verdict.problems[:10]


def test_seeds(ports: Site, plain: Site) -> None:
    """120 seeds on four lanes at once: five samplers, nine ways to draw seeded noise, ComfyUI's own noise node."""
    prompts = [workflows.sampled(seed, sampler=sampler, prefix="seeds")
               for seed, sampler in zip(range(60), itertools.cycle(workflows.SAMPLERS), strict=False)]
    prompts += [workflows.noise(seed, how) for seed, how in zip(range(45), itertools.cycle(NOISE), strict=False)]
    prompts += [workflows.added_noise(seed) for seed in range(15)]
    # Neighbours in time are of different kinds, so that the kinds meet on the lanes.
    mixed = [prompts[index * 47 % len(prompts)] for index in range(len(prompts))]
    verdict = scenarios.same_pictures(ports.lanes, plain.lanes[0], mixed)
    accept("seeds", verdict)
    assert verdict.counts["pictures"] == 120


def test_seeds_beyond_the_patches(ports: Site, plain: Site) -> None:
    """What draws past every replaced name follows the seed, too, as long as one job runs at a time."""
    prompts = [workflows.noise(seed, how) for seed in (3, 2**40 + 1) for how in BEYOND]
    again = [workflows.noise(seed, how, prefix="proof/again") for seed in (3, 2**40 + 1) for how in BEYOND]
    verdict = scenarios.same_pictures(ports.lanes[1:2], plain.lanes[0], prompts + again)
    accept("seeds beyond the patches", verdict)
    assert verdict.counts["pictures"] == 20


def test_mixed(ports: Site, plain: Site) -> None:
    """A hundred mixed prompts over three checkpoints, with and without LoRA, while lanes are freed now and then."""
    kinds = itertools.cycle(itertools.product(("fp16", "fp32", "mid"), (0.0, 0.8, 0.4), workflows.SAMPLERS))
    prompts = [workflows.sampled(seed, model=model, lora=lora, sampler=sampler, prefix="mixed")
               for seed, (model, lora, sampler) in zip(range(100), kinds, strict=False)]
    freed = 0

    def free(index: int) -> None:
        nonlocal freed
        if index % 9 == 4:
            lane = ports.lanes[(index // 9) % len(ports.lanes)]
            assert lane.post("/free", {"unload_models": True, "free_memory": index % 2 == 0}).status == 200
            freed += 1

    verdict = scenarios.same_pictures(ports.lanes, plain.lanes[0], prompts, meanwhile=free)
    print(f"\nfreed {freed} times")
    accept("mixed", verdict)
    assert verdict.counts["pictures"] == 100


def test_expansion(ports: Site, plain: Site) -> None:
    """Forty prompts a lane that expand into loops of nodes finish, and give what they give alone."""
    prompts = [workflows.expanding(seed, prefix="expanded") for seed in range(160)]
    verdict = scenarios.same_pictures(ports.lanes, plain.lanes[0], prompts)
    accept("expansion", verdict)
    assert verdict.counts["pictures"] == 160


def test_video_model(ports: Site, plain: Site) -> None:
    """The Wan-shaped model's latents are the same on four lanes and alone."""
    verdict = scenarios.same_pictures(ports.lanes, plain.lanes[0], [workflows.wan(seed) for seed in range(24)])
    accept("wan", verdict)
    assert verdict.counts["pictures"] == 24


def test_batches_and_sizes(ports: Site, plain: Site) -> None:
    """Batches and other sizes give the same bytes, too."""
    prompts = [workflows.sampled(seed, size=64 + 64 * (seed % 2), batch=1 + seed % 3, steps=3, prefix="sizes",
                                 sampler=workflows.SAMPLERS[seed % 5]) for seed in range(24)]
    accept("batches", scenarios.same_pictures(ports.lanes, plain.lanes[0], prompts))
