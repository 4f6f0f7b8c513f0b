"""The frontend's cold page load, 471 requests as a browser sent them, against the limits."""

import json
from pathlib import Path

import pytest

from gateway.config import RateLimits
from gateway.ratelimit import Limiter
from gateway.request import Kind, classify

Arrival = tuple[float, Kind]


@pytest.fixture(scope="module")
def page() -> list[Arrival]:
    """Times in seconds and kinds of the recorded requests (ComfyUI 0.3.64, frontend 1.27.10, headless Chromium)."""
    rows = json.loads((Path(__file__).parents[1] / "data" / "pageload_cold.json").read_text())
    assert len(rows) == 471
    return [(t / 1000, classify(method.encode(), url.encode(), upgrade=False)) for t, method, url in rows]


def denials(limits: Limiter, arrivals: list[Arrival]) -> int:
    """Replay in order of time, from one client to one GPU."""
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    return sum(not limits.check(0, kind, "192.0.2.1", t).allowed for t, kind in arrivals)


@pytest.mark.parametrize("tabs", [1, 3])
def test_page_loads_whole(page: list[Arrival], tabs: int) -> None:
    """Nothing is refused to a cold browser, nor to three tabs that open at the same moment with their sockets."""
    arrivals = [*page, (4.0, Kind.EVENTS)] * tabs
    assert denials(Limiter(RateLimits(), 4), arrivals) == 0


def test_page_loads_with_many_extensions(page: list[Arrival]) -> None:
    """405 further scripts of custom nodes within the same second are not refused either."""
    more = [(3.6, classify(b"GET", b"/extensions/Node/%d.js" % n, upgrade=False)) for n in range(405)]
    assert denials(Limiter(RateLimits(), 4), page + more) == 0


def test_one_bucket_for_all_blanks_the_page(page: list[Arrival]) -> None:
    """With scope = "all" at 10/s and burst 20 most of the page is refused, so this replay can fail."""
    refused = denials(Limiter(RateLimits(scope="all"), 4), page)
    assert refused > 300
    assert denials(Limiter(RateLimits(scope="all"), 4), page[:188]) > 100


def test_most_of_a_page_is_static(page: list[Arrival]) -> None:
    """The kinds of the recorded page: static files, and API reads that fit one burst."""
    kinds = [kind for _, kind in page]
    assert set(kinds) == {Kind.UI, Kind.READ}
    assert kinds.count(Kind.READ) < 20
