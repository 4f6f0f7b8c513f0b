"""Any number of lanes that save under one prefix never write the same name."""

import pytest

from tests.comfyui import scenarios
from tests.comfyui.conftest import Site
from tests.comfyui.test_pictures import accept

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]


@pytest.mark.parametrize("saver", ["SaveImage", "own"])
@pytest.mark.parametrize(("jobs", "batch"), [(40, 4), (40, 1), (8, 20)])
def test_one_prefix(ports: Site, saver: str, jobs: int, batch: int) -> None:
    """Every picture has its own file that shows its job's colour, for ComfyUI's saver and one that counts itself."""
    verdict = scenarios.files(ports.lanes, jobs=jobs, batch=batch, saver=saver)
    accept(f"files by {saver}, {jobs} jobs of {batch}", verdict)
    assert verdict.counts["names"] == jobs * batch
    on_disk = list(ports.folders.output.rglob("same/*.png"))
    assert len(on_disk) >= jobs * batch


def test_both_savers_at_once(ports: Site) -> None:
    """ComfyUI's saver and a counting one under the same prefix at the same time do not meet either."""
    results: dict[str, scenarios.Verdict] = {}

    def save(saver: str) -> None:
        results[saver] = scenarios.files(ports.lanes, jobs=24, batch=3, saver=saver)

    scenarios.together([lambda: save("SaveImage"), lambda: save("own")])
    for saver, verdict in results.items():
        accept(f"files by {saver}, with the other saver busy", verdict)
