"""The limits are nginx's limit_req to the millisecond, per GPU, in bounded memory."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Rate, RateLimits
from gateway.ratelimit import Limiter, Zone, clientkey
from gateway.request import Kind, classify

CLIENT = "192.0.2.1"


class Model:
    """nginx's limit_req for one key, from its description: integers, milliseconds, thousandths of a request."""

    def __init__(self, rate: int, burst: int, delay: int | None) -> None:
        self.rate, self.burst, self.delay = rate, burst * 1000, None if delay is None else delay * 1000
        self.excess, self.last, self.known = 0, 0, False

    def ask(self, now: int) -> int | None:
        """Return milliseconds of delay, or None for a refusal."""
        excess, ms = 0, now - self.last
        if self.known:
            ms = 1 if ms < -60000 else max(ms, 0)
            excess = max(0, self.excess - self.rate * ms // 1000 + 1000)
            if excess > self.burst:
                return None
        if ms or not self.known:
            self.last = now
        self.excess, self.known = excess, True
        return 0 if self.delay is None else max(0, excess - self.delay) * 1000 // self.rate


def limiter(rate: Rate, **changes: object) -> Limiter:
    """Build a limiter with this bucket for submissions."""
    return Limiter(replace(RateLimits(submit=rate), **changes), 4)  # type: ignore[arg-type]  # names fields


def passes(limits: Limiter, count: int, now: float, gpu: int | None = 0, client: str = CLIENT) -> int:
    """Ask for ``count`` submissions at once; return how many pass."""
    return sum(limits.check(gpu, Kind.SUBMIT, client, now).allowed for _ in range(count))


RATES = st.builds(
    Rate,
    rate=st.sampled_from([0.016, 0.5, 1, 3, 10, 50, 333.333, 5000]),
    burst=st.integers(0, 30),
    delay=st.none() | st.integers(0, 40),
)
GAPS = st.lists(st.sampled_from([0, 0, 0, 1, 7, 99, 100, 101, 999, 60_000, 10**8]) | st.integers(0, 3000), max_size=120)


@given(rate=RATES, gaps=GAPS, back=st.lists(st.sampled_from([-1, -59_999, -60_000, -60_001, -(10**7)]), max_size=4))
def test_equals_nginx(rate: Rate, gaps: list[int], back: list[int]) -> None:
    """For any arrivals, clock steps backwards included, verdicts and delays are those of the reference model."""
    limits, model, now = limiter(rate), Model(round(rate.rate * 1000), rate.burst, rate.delay), 10**9
    steps = [*gaps[: len(gaps) // 2], *back, *gaps[len(gaps) // 2 :]]
    for gap in steps:
        now += gap
        verdict = limits.check(0, Kind.SUBMIT, CLIENT, now / 1000)
        assert (round(verdict.delay * 1000) if verdict.allowed else None) == model.ask(now)


def test_clock_set_back() -> None:
    """A clock set back refills nothing until it is where it was; one set back by more than a minute starts anew."""
    limits = limiter(Rate(10, 0))
    assert passes(limits, 2, 100.0) == 1
    assert [passes(limits, 1, now) for now in (99.9, 60.0, 99.0, 100.0, 100.099)] == [0] * 5
    assert passes(limits, 2, 100.1) == 1
    limits = limiter(Rate(10, 5))
    assert passes(limits, 3, 100.0) == 3
    assert passes(limits, 1, 50.0) == 1
    assert passes(limits, 9, 99.0) == 2
    limits = limiter(Rate(1000, 1))
    assert passes(limits, 2, 100.0) == 2
    assert [passes(limits, 1, now) for now in (40.0, 39.999, 39.999, 40.0)] == [0, 1, 0, 1]


def test_forgotten_only_when_refilled() -> None:
    """An idle key with a debt is kept, though it was not seen for longer than the idle time."""
    limits = limiter(Rate(0.1, 0), idle=1.0)
    assert passes(limits, 1, 0.0) == 1
    limits.sweep(9.9)
    assert limits.size == 1
    assert passes(limits, 1, 9.9) == 0
    limits.sweep(10.0)
    assert limits.size == 0
    assert passes(limits, 2, 10.0) == 1


@given(rate=RATES, steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100_000), st.booleans()), max_size=80))
def test_forgetting_is_unseen(rate: Rate, steps: list[tuple[int, int, bool]]) -> None:
    """Keys forgotten for idleness behave as if they had been kept: every key equals its own endless model."""
    limits, now = limiter(rate, idle=1.0), 0
    models = [Model(round(rate.rate * 1000), rate.burst, rate.delay) for _ in range(4)]
    for who, gap, sweep in steps:
        now += gap
        if sweep:
            limits.sweep(now / 1000)
        verdict = limits.check(0, Kind.SUBMIT, f"192.0.2.{who}", now / 1000)
        assert (round(verdict.delay * 1000) if verdict.allowed else None) == models[who].ask(now)


def test_sixty_at_once() -> None:
    """Of 60 submissions at once exactly 21 pass, then 10 a second; another GPU is not touched."""
    limits = limiter(Rate(10, 20))
    assert passes(limits, 60, 5.0) == 21
    assert passes(limits, 60, 5.0, gpu=1) == 21
    assert sum(passes(limits, 3, 5.0 + ms / 1000) for ms in range(1, 5001)) == 50
    assert passes(limits, 60, 5.0, gpu=None) == 21


def test_refilled_continuously() -> None:
    """A slot comes back every 100 ms at 10/s, not a millisecond sooner, and never more than were used."""
    limits = limiter(Rate(10, 20))
    assert passes(limits, 60, 0.0) == 21
    assert passes(limits, 5, 0.099) == 0
    assert passes(limits, 5, 0.1) == 1
    assert passes(limits, 5, 0.35) == 2
    assert passes(limits, 60, 100.0) == 21


@given(rate=RATES, gaps=GAPS)
def test_retry_after_is_true(rate: Rate, gaps: list[int]) -> None:
    """Who waits as long as the refusal says, and asks once, passes; the wait is at least one whole second."""
    limits, now = limiter(rate), 0.0
    for gap in gaps:
        now += gap / 1000
        verdict = limits.check(0, Kind.SUBMIT, CLIENT, now)
        if not verdict.allowed:
            assert verdict.retry_after >= 1
            now += verdict.retry_after
            assert limits.check(0, Kind.SUBMIT, CLIENT, now).allowed


def test_refusals_cost_nothing() -> None:
    """Hammering while refused does not push the next slot away."""
    limits = limiter(Rate(1, 0))
    assert passes(limits, 1, 0.0) == 1
    assert sum(passes(limits, 1, ms / 1000) for ms in range(1000)) == 0
    assert passes(limits, 1, 1.0) == 1


def test_headers_of_a_refusal() -> None:
    """A refusal names its policy and the wait as structured fields."""
    limits = limiter(Rate(0.1, 2))
    passes(limits, 3, 0.0)
    verdict = limits.check(0, Kind.SUBMIT, CLIENT, 0.0)
    assert (verdict.allowed, verdict.retry_after, verdict.status) == (False, 10, "rejected")
    assert verdict.headers == (
        (b"RateLimit-Policy", b'"submit";q=3;w=30'),
        (b"RateLimit", b'"submit";r=0;t=10'),
    )


def test_delay_as_nginx_paces() -> None:
    """With delay=2 two of the burst pass at once, the others are spaced at the rate, and above the burst refused."""
    limits = limiter(Rate(10, 5, delay=2))
    verdicts = [limits.check(0, Kind.SUBMIT, CLIENT, 0.0) for _ in range(7)]
    assert [round(v.delay, 3) for v in verdicts[:6]] == [0, 0, 0, 0.1, 0.2, 0.3]
    assert [v.allowed for v in verdicts] == [True] * 6 + [False]


def test_events_are_held_back() -> None:
    """Handshakes above the burst wait their turn and never longer than the bound; none is refused."""
    limits = Limiter(RateLimits(events=Rate(5, 50, refuse=False), max_delay=8.0), 1)
    delays = [limits.check(0, Kind.EVENTS, CLIENT, 0.0) for _ in range(500)]
    assert all(v.allowed for v in delays)
    assert [v.delay for v in delays[:53]] == [0.0] * 51 + [0.2, 0.4]
    assert max(v.delay for v in delays) == 8.0
    assert limits.check(0, Kind.EVENTS, CLIENT, 8.0).delay == pytest.approx(0.2)


def test_static_files_are_never_refused() -> None:
    """Web files have no bucket by cost; with one bucket for every path they have."""
    free, seed = Limiter(RateLimits(), 1), Limiter(RateLimits(scope="all"), 1)
    assert all(free.check(0, Kind.UI, CLIENT, 0.0).allowed for _ in range(5000))
    assert sum(seed.check(0, kind, CLIENT, 0.0).allowed for kind in Kind for _ in range(60)) == 21


def test_one_bucket_for_the_gpu() -> None:
    """With key = "gpu" all clients of a GPU share its bucket, and only of that GPU."""
    limits = limiter(Rate(10, 20), key="gpu")
    assert sum(passes(limits, 1, 0.0, client=f"192.0.2.{n}") for n in range(60)) == 21
    assert passes(limits, 60, 0.0, gpu=1) == 21


def test_dry_run_counts_and_lets_pass() -> None:
    """A dry run refuses nothing and says what it would have done."""
    limits = limiter(Rate(10, 5, delay=2), dry_run=True)
    verdicts = [limits.check(0, Kind.SUBMIT, CLIENT, 0.0) for _ in range(8)]
    assert all(v.allowed and v.delay == 0 for v in verdicts)
    assert [v.status for v in verdicts] == ["passed"] * 3 + ["delayed_dry_run"] * 3 + ["rejected_dry_run"] * 2


def test_switched_off() -> None:
    """With enabled = false nothing is refused or held back, whatever the scope."""
    limits = Limiter(RateLimits(enabled=False, scope="all"), 1)
    assert {limits.check(0, Kind.SUBMIT, CLIENT, 0.0).status for _ in range(500)} == {"passed"}


@given(st.lists(st.integers(0, 60), max_size=200))
def test_memory_is_bounded(clients: list[int]) -> None:
    """A table never holds more than its share of max_keys; the least recently used key goes first."""
    limits = Limiter(RateLimits(max_keys=50), 1)
    for client in clients:
        limits.check(0, Kind.SUBMIT, f"192.0.2.{client}", 0.0)
        assert limits.size <= 10
    recent = list(dict.fromkeys(f"192.0.2.{client}" for client in reversed(clients)))[:10]
    assert set(limits._zones[0, Kind.SUBMIT].table) == set(recent)
    assert bool(limits.evictions) == (len(set(clients)) > 10)


def test_idle_keys_are_forgotten() -> None:
    """After the idle time newcomers push out two stale keys each, and a sweep all of them; evictions count neither."""
    limits = Limiter(RateLimits(idle=60.0), 1)
    for n in range(100):
        limits.check(0, Kind.SUBMIT, f"192.0.2.{n}", 0.0)
    limits.check(0, Kind.SUBMIT, "198.51.100.1", 59.0)
    assert limits.size == 101
    limits.check(0, Kind.SUBMIT, "198.51.100.2", 61.0)
    assert limits.size == 100
    limits.sweep(61.0)
    assert (limits.size, limits.evictions) == (2, 0)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_client_keys(address: str, key: str) -> None:
    """IPv4 counts by address, IPv6 by /64, an IPv4-mapped address as IPv4."""
    assert clientkey(address) == key


def test_spellings_and_neighbours_are_no_way_around() -> None:
    """60 submissions in turn over spellings of the path and addresses of one /64 still give 21 passes."""
    limits = Limiter(RateLimits(), 4)
    spellings = [
        b"/prompt",
        b"/api/prompt",
        b"//api/prompt",
        b"/api/%70rompt",
        b"/assets/..%2fapi/prompt",
        b"/API/prompt",
    ]
    allowed = 0
    for n in range(60):
        kind = classify(b"POST", spellings[n % len(spellings)], upgrade=False)
        allowed += limits.check(2, kind, f"2001:db8::{n:x}", 1.0).allowed
    assert allowed == 21


def test_state_is_said_in_one_line() -> None:
    """The repr shows scope, keys and evictions."""
    assert repr(Limiter(RateLimits(), 1)) == "<Limiter scope=cost keys=0 evictions=0>"


def test_window_holds_the_quota() -> None:
    """The advertised window is never shorter than a full bucket takes to come back, and never zero."""
    fast = Zone("x", Rate(5000, 0), max_keys=1, idle=1, longest=1)
    assert fast.headers(1)[0] == (b"RateLimit-Policy", b'"x";q=1;w=1')
