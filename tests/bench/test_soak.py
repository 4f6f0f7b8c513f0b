"""Two minutes of mixed load with faults on both sides leave nothing behind. Longer ones: ``python -m bench.soak``."""

import json

import pytest

from tests.bench.conftest import SOAK


@pytest.mark.timeout(400)
def test_two_minutes_of_everything_at_once_leak_nothing(request: pytest.FixtureRequest):
    """Every manner of client and fault of the backend is met; nothing is left, and no answer was wrong."""
    soak = request.config.stash[SOAK]
    told, _ = soak.process.communicate(timeout=390)
    assert soak.process.returncode == 0, told
    print(told)
    from bench.soak_load import MANNERS  # noqa: PLC0415 (beside what it is compared with)

    found = json.loads(soak.found.read_text(encoding="utf-8"))
    assert set(found["done"]) == {manner.__name__ for manner in MANNERS}
