"""Single values: the right type and form, within bounds, with a message that helps."""

import contextlib
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.settings.values import nearest, read_value
from gateway.spec import Spec

SPECS = [
    get_args(kind)[1]
    for kind in vars(config).values()
    if len(get_args(kind)) == 2 and isinstance(get_args(kind)[1], Spec)
]


def spec(name: str) -> Spec:
    """The spec of one of config's types."""
    found: Spec = get_args(getattr(config, name))[1]
    return found


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ("Flag", True, True),
        ("Port", 0, 0),
        ("Size", "100MB", 104857600),
        ("Size", 5, 5),
        ("Seconds", 60, 60.0),
        ("Seconds", "10m", 600.0),
        ("PerSecond", "600r/m", 10.0),
        ("PerSecond", 2.5, 2.5),
        ("Level", "warning", "warning"),
        ("Host", "::1", "::1"),
        ("Host", "gpu-box.lan", "gpu-box.lan"),
        ("Url", "http://[::1]:8188", "http://[::1]:8188"),
        ("Url", "unix:/run/comfy.sock", "unix:/run/comfy.sock"),
        ("Network", "10.0.0.0/8", "10.0.0.0/8"),
        ("Network", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_accepted(kind: str, value: object, read: object) -> None:
    """Friendly spellings come out as the plain values a config holds."""
    result = read_value(spec(kind), value)
    assert result == read
    assert type(result) is type(read)


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("Flag", 1, "must be true or false, not a whole number"),
        ("Flag", "yes", "must be true or false, not a string"),
        ("Text", ["a"], "must be a string, not an array"),
        ("Text", "a\0b", "NUL"),
        ("Port", True, "must be a whole number, not a boolean"),
        ("Port", 8181.0, "must be a whole number, not a fraction"),
        ("Port", "8181", "must be a whole number, not a string"),
        ("Port", 65536, "must be 0 to 65535, not 65536"),
        ("Port", -1, "must be 0 to 65535, not -1"),
        ("Count", 10**30, "not that"),
        ("Size", 1.5, "must be a whole number or a string with a unit"),
        ("Size", "100MX", 'such as "64KB"'),
        ("Size", 0, "must be 1 to 1TB, not 0"),
        ("HeadSize", "1GB", "must be 1KB to 16MB, not 1GB"),
        ("Seconds", 0, "must be 1ms to 30d, not 0s"),
        ("Seconds", math.nan, "must be 1ms to 30d"),
        ("Seconds", math.inf, "must be 1ms to 30d"),
        ("Seconds", "soon", 'such as "500ms"'),
        ("PerSecond", "10r/h", 'such as "10r/s"'),
        ("PerSecond", "0r/s", "must be 0.001 requests a second to"),
        ("Level", "warn", "did you mean warning?"),
        ("LimitKey", "server", "must be client or gpu"),
        ("Host", "", "0.0.0.0"),
        ("Host", "*", "0.0.0.0"),
        ("Host", "300.1.1.1", "is not an address"),
        ("Url", "127.0.0.1:8188", "must be http://HOST:PORT"),
        ("Url", "http://127.0.0.1", "must be http://HOST:PORT"),
        ("Url", "http://127.0.0.1:99999", "must be http://HOST:PORT"),
        ("Url", "http://127.0.0.1:8188/", "nothing after it"),
        ("Url", "http://127.0.0.1:8188/comfy", "nothing after it"),
        ("Url", "http://user@127.0.0.1:8188", "nothing after it"),
        ("Url", "https://127.0.0.1:8188", "plain HTTP"),
        ("Url", "http://[::1:8188", "must be http://HOST:PORT"),
        ("Url", "http://127.0.0.1:81\n88", "must be http://HOST:PORT"),
        ("Url", "unix:run", "unix:/PATH"),
        ("Network", "10.0.0.1/8", "host bits"),
        ("Network", "loopback", "must be an address or a network"),
    ],
)
def test_refused(kind: str, value: object, says: str) -> None:
    """Wrong types, forms and bounds are refused with what is wrong, on one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        read_value(spec(kind), value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.times()
NESTED = st.recursive(
    ANYTHING, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.sampled_from(SPECS), NESTED | st.from_regex(r"(http|unix)[:/\[\]@a-z0-9.]*", fullmatch=True))
def test_value_or_message(kind: Spec, value: object) -> None:
    """Whatever value stands there, it is read or refused with a ValueError, never anything else."""
    with contextlib.suppress(ValueError):
        assert read_value(kind, value) is not None


def test_all_forms_are_tried() -> None:
    """The property above covers every type that config declares."""
    assert len({kind.form for kind in SPECS}) == 10


def test_nearest_word() -> None:
    """A slip of the finger finds the word that was meant, and nonsense none."""
    assert nearest("gpu_prots", ["front_port", "gpu_ports"]) == "gpu_ports"
    assert nearest("zzz", ["front_port", "gpu_ports"]) is None
