"""Sizes, durations and rates read as nginx's do, and read back as they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings.units import parse_rate, parse_seconds, parse_size, show_rate, show_seconds, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 100 << 20), ("100m", 100 << 20), ("64KiB", 65536), ("64 KB", 65536), ("1.5g", 3 << 29), ("4096", 4096)],
)
def test_sizes(text: str, size: int) -> None:
    """Sizes count by 1024, however the unit is spelt."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600s", 600), ("10m", 600), ("500ms", 0.5), ("1h 30m", 5400), ("2d", 172800), ("600", 600), ("1.5", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations take nginx's units, several of them, and bare seconds."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "rate"), [("10r/s", 10), ("600r/m", 10), ("1r/m", 0.016), ("100r/m", 1.666)])
def test_rates(text: str, rate: float) -> None:
    """Rates a minute are kept to the thousandth below, as nginx keeps them."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("parse", [parse_size, parse_seconds, parse_rate])
@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e3", "10 parsecs", "10r/h", "1..5", "inf", "nan", "٣", "9" * 40, "10rs"]
)
def test_refused(parse: object, text: str) -> None:
    """What is no size, duration or rate is refused with an example."""
    with pytest.raises(ValueError, match="such as"):
        parse(text)  # type: ignore[operator]  # each is a function of text


@given(st.integers(0, 1 << 50))
def test_sizes_read_back(size: int) -> None:
    """A size shown reads back as itself."""
    assert parse_size(show_size(size)) == size


@given(st.integers(1, 10**9).map(lambda ms: ms / 1000))
def test_durations_read_back(seconds: float) -> None:
    """A duration of whole milliseconds shown reads back as itself."""
    assert parse_seconds(show_seconds(seconds)) == pytest.approx(seconds, rel=1e-12)


@given(st.integers(1, 10**6), st.sampled_from("sm"))
def test_rates_read_back(count: int, per: str) -> None:
    """A rate that the file can spell, shown, reads back as itself."""
    rate = parse_rate(f"{count}r/{per}")
    shown = show_rate(rate)
    assert (parse_rate(shown) if "r/" in shown else float(shown)) == rate
