"""Model calls of a real ComfyUI: counted where they happen, and the same pictures with the issue lock held."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site, start_overlay_site, stop_site
from tests.comfyui.stack import Comfy
from tests.comfyui.wire import Lane, outcome

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

STEPS = 12


@pytest.fixture(scope="module")
def locked(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two lanes of which one at a time issues."""
    site = start_overlay_site(
        comfy, tiny_models, tmp_path_factory.mktemp("locked"), lanes=2, own=("--issue-lock", "on"))
    yield site
    stop_site(site)


def issuing(lane: Lane) -> dict[str, object]:
    """What the backend says of this lane's model calls."""
    found = lane.get("/debug/queues")["issuing"]["lanes"][lane.gpu]
    assert found["gpu_id"] == lane.gpu
    return dict(found)


def test_a_samplers_calls_are_counted_on_its_lane(locked: Site) -> None:
    """Twelve steps are twelve calls on the lane that sampled, and a share between 0 and 1; the other lane has none."""
    first, second = locked.lanes
    before = [issuing(lane)["calls"] for lane in locked.lanes]
    prompt = workflows.sampled(1, steps=STEPS, prefix="issuing")
    assert outcome(second.finished(second.submit(prompt))) == "success"
    after = [issuing(lane) for lane in locked.lanes]
    assert after[0]["calls"] == before[0]
    assert isinstance(before[1], int)
    assert after[1]["calls"] == before[1] + STEPS
    ratio = after[1]["ratio"]
    assert isinstance(ratio, float)
    assert 0.0 < ratio <= 1.0
    assert first.get("/debug/queues")["issuing"]["verdict"] == "cpu"
    text = first.call("GET", "/metrics").body.decode()
    assert 'comfy_backend_issue_ratio{gpu="1"}' in text


def test_pictures_are_the_same_with_the_lock(locked: Site, plain: Site) -> None:
    """Two lanes at once, one issuing at a time: every byte as on plain ComfyUI."""
    prompts = [workflows.sampled(seed, steps=6, prefix="issuing") for seed in range(4)]
    jobs = [(locked.lanes[index % 2], locked.lanes[index % 2].submit(prompt)) for index, prompt in enumerate(prompts)]
    found = [lane.pictures(lane.finished(job)) for lane, job in jobs]
    lane = plain.lanes[0]
    wanted = [lane.pictures(lane.finished(lane.submit(prompt))) for prompt in prompts]
    assert found == wanted
