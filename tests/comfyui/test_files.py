"""Any number of lanes that save under one prefix never write the same name."""

import uuid

import pytest

from tests.comfyui import scenarios
from tests.comfyui.conftest import Site
from tests.comfyui.test_pictures import accept

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

COUNTING = ["EnumerateSaver", "IntSaver", "NumpySaver", "RangeSaver", "ListingSaver"]


@pytest.mark.parametrize("saver", ["SaveImage", "CountingSaver"])
@pytest.mark.parametrize(("jobs", "batch"), [(40, 4), (40, 1), (8, 20)])
def test_one_prefix(ports: Site, saver: str, jobs: int, batch: int) -> None:
    """Every picture has its own file that shows its job's colour, for ComfyUI's saver and one that counts itself."""
    verdict = scenarios.files(ports.lanes, jobs=jobs, batch=batch, saver=saver)
    accept(f"files by {saver}, {jobs} jobs of {batch}", verdict)
    assert verdict.counts["names"] == jobs * batch
    on_disk = list(ports.folders.output.rglob("same/*.png"))
    assert len(on_disk) >= jobs * batch


@pytest.mark.parametrize("saver", COUNTING)
def test_however_a_node_counts(ports: Site, saver: str) -> None:
    """4 lanes, 10 jobs each of 4 pictures, saved by a custom node that counts otherwise than by adding."""
    verdict = scenarios.files(ports.lanes, jobs=40, batch=4, saver=saver)
    accept(f"files by {saver}, 40 jobs of 4", verdict)
    assert verdict.counts["names"] == 160


@pytest.mark.parametrize("saver", ["CountingSaver", "RangeSaver"])
def test_both_savers_at_once(ports: Site, saver: str) -> None:
    """ComfyUI's saver and a counting one under the same prefix at the same time do not meet either."""
    results: dict[str, scenarios.Verdict] = {}
    prefix = f"same/{uuid.uuid4().hex[:6]}"

    def save(name: str) -> None:
        results[name] = scenarios.files(ports.lanes, jobs=24, batch=3, saver=name, prefix=prefix)

    scenarios.together([lambda: save("SaveImage"), lambda: save(saver)])
    assert len(list(ports.folders.output.rglob(f"{prefix}_*.png"))) == 2 * 24 * 3
    for name, verdict in results.items():
        accept(f"files by {name}, with the other saver busy", verdict)
