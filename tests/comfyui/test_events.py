"""Events reach the client that submitted, on the port where it listens, and nobody else."""

import pytest

from tests.comfyui import scenarios_events as scenarios
from tests.comfyui import workflows
from tests.comfyui.conftest import Site
from tests.comfyui.stack import Comfy
from tests.comfyui.test_pictures import accept
from tests.comfyui.wire import Listener, metrics

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]


@pytest.mark.parametrize("turn", range(3))
def test_each_client_its_own(comfy: Comfy, ports: Site, turn: int) -> None:
    """Four sampling jobs at once: each client gets all steps, previews and ends of its job and of no other."""
    throttled = "PROGRESS_THROTTLE" in (comfy.folder / "comfy/utils.py").read_text()
    accept(f"isolation {turn}", scenarios.isolation(ports.lanes, steps=10 + turn, throttled=throttled))


@pytest.mark.parametrize("pool", [False, True])
def test_helper_threads(ports: Site, pool: bool) -> None:
    """Progress from threads and pools that nodes start arrives at the own client under the own job's name."""
    accept("helper threads", scenarios.helper_threads(ports.lanes, pool=pool))


def test_threads_that_live_on(ports: Site, plain: Site) -> None:
    """A thread started at import, or by an earlier job, reports under the job that runs, as in plain ComfyUI."""
    accept("plain", scenarios.served_progress(plain.lanes[0]))
    accept("on GPU 2", scenarios.served_progress(ports.lanes[2]))


def test_same_client_id(ports: Site) -> None:
    """The same ``clientId`` on two ports is two clients, also after one has left."""
    accept("same clientId", scenarios.same_client(ports.lanes[0], ports.lanes[1]))


def test_same_client_again(ports: Site) -> None:
    """A tab that connects again before its old socket is gone hears everything on the new one."""
    if ports.front is None:
        pytest.skip("PROOF_DIRECT is set: the gateway is what keeps the older socket open")
    accept("a newer socket", scenarios.replaced_socket(ports.lanes[2]))


def test_broadcasts_of_nodes(ports: Site) -> None:
    """What a running node sends to nobody in particular reaches every client of its GPU and none of another."""
    accept("broadcasts", scenarios.broadcasts(ports.lanes))


def test_broadcasts_of_nobody(ports: Site) -> None:
    """What a thread without a job broadcasts, as resource monitors do, reaches everyone."""
    listeners = [Listener(lane) for lane in ports.lanes]
    for listener in listeners:
        event = listener.wait(lambda event: event.kind == "proof.tick", 20)
        assert event.data["count"] > 0
        listener.close()


def test_events_after_reconnect(ports: Site) -> None:
    """A client that comes back while its job runs is told the running node, on its own GPU, and gets the rest."""
    verdict = scenarios.reconnect(ports.lanes)
    accept("reconnect", verdict)


def test_stalled_socket(ports: Site) -> None:
    """A client that stops reading delays no other, neither on its GPU nor on another."""
    accept("stalled socket", scenarios.stalled_socket(ports.lanes))


def test_status_counts_its_own_lane(ports: Site) -> None:
    """``status`` on a port counts that port's jobs, is there for each change, and is 0 elsewhere."""
    accept("status", scenarios.status(ports.lanes))


def test_metrics_from_execution(ports: Site) -> None:
    """The backend counts jobs, node seconds by class, cache hits and model loads of the lane that did the work."""
    lane = ports.lanes[3]
    assert ports.backend
    before = metrics(ports.backend)
    for _ in range(2):
        lane.finished(lane.submit(workflows.sampled(4711, prefix="metrics")))
    after = metrics(ports.backend)
    grown = {name for name, value in after.items() if value > before.get(name, 0.0)}
    for part in ('comfy_backend_jobs_total{gpu="3",outcome="success"}', 'comfy_backend_cache_hits_total{gpu="3"}',
                 'comfy_backend_node_seconds_sum{class="KSampler",gpu="3"}',
                 'comfy_backend_job_execution_seconds_count{gpu="3"}'):
        assert part in grown, sorted(grown)
    elsewhere = {name for name in grown if name.startswith("comfy_backend") and 'gpu="1"' in name}
    assert not {name for name in elsewhere if "memory" not in name}
