"""Settings that are fine each by itself and wrong together."""

from dataclasses import replace

import pytest

from gateway.config import Config, Rate
from gateway.forwarded import is_loopback
from gateway.settings.rules import findings


def told(section: str, **changes: object) -> list[tuple[str, bool]]:
    """What is said about the default config with these changes: message and whether it is only a warning."""
    config = Config()
    changed = replace(config, **{section: replace(getattr(config, section), **changes)})
    return [(finding.message, finding.warning) for finding in findings(changed)]


def test_defaults_are_in_order() -> None:
    """There is nothing to say about the defaults."""
    assert list(findings(Config())) == []


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("listen", {"gpu_ports": ()}, "at least one port"),
        ("listen", {"gpu_ports": tuple(range(9000, 9065))}, "64 is the most"),
        ("listen", {"gpu_ports": (8181, 8182, 8181)}, "GPU 0 and GPU 2 both have port 8181"),
        ("listen", {"front_port": 8182}, "port 8182 is that of GPU 1 as well"),
        ("listen", {"front_port": 8188}, "would call itself"),
        ("listen", {"gpu_ports": (8187, 8188)}, "would call itself"),
        ("listen", {"host": ()}, "at least one address"),
        ("listen", {"host": ("127.0.0.1", "127.0.0.1")}, "twice"),
        ("tls", {"key": "key.pem"}, "no effect without certificate"),
        ("backend", {"devices": ("cpu",)}, "names 1 for 4 GPUs"),
        ("backend", {"restart_min": 60.0}, "larger than restart_max"),
        ("limits", {"request_line": 1 << 20}, "larger than head"),
        ("limits", {"idle_connections": 300}, "larger than pool_connections"),
    ],
)
def test_contradictions(section: str, changes: dict[str, object], says: str) -> None:
    """Each contradiction is one error."""
    ((message, warning),) = told(section, **changes)
    assert says in message
    assert not warning


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("listen", {"host": ("127.0.0.1", "0.0.0.0")}, "0.0.0.0 without [tls] certificate"),
        ("listen", {"host": ("gpu-box",)}, "cross the network in clear"),
        ("limits", {"body": 101 << 20}, '"--max-upload-size", "101"'),
        ("backend", {"url": "http://10.0.0.5:8188"}, "not on 10.0.0.5; set start = false"),
        ("backend", {"url": "unix:/run/comfy.sock"}, "set start = false"),
        ("backend", {"start": False, "comfyui": "/opt/ComfyUI"}, "no effect with start = false"),
        ("timeouts", {"backend_idle": 75.0}, "not below the 75 s"),
        ("rate", {"submit": Rate(10, 20, delay=21)}, "same as nodelay"),
        ("rate", {"all": Rate(10, 30)}, 'no effect with scope = "cost"'),
        ("rate", {"scope": "all"}, "the page stays blank"),
        ("rate", {"scope": "all", "all": Rate(10, 20, delay=0)}, "most of a minute"),
    ],
)
def test_warnings(section: str, changes: dict[str, object], says: str) -> None:
    """What is legal but rarely meant is one warning, and no error."""
    ((message, warning),) = told(section, **changes)
    assert says in message
    assert warning


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("listen", {"front_port": 0, "gpu_ports": (0, 0)}),
        ("listen", {"host": ("::1", "127.0.0.2", "localhost")}),
        ("limits", {"body": 90 << 20}),
        ("rate", {"scope": "all", "all": Rate(10, 900)}),
        ("backend", {"args": ("--max-upload-size=500",)}),
    ],
)
def test_in_order(section: str, changes: dict[str, object]) -> None:
    """Ports that the system chooses, every loopback address and wide limits are nothing to talk about."""
    assert told(section, **changes) == []


def test_raised_upload_size() -> None:
    """A larger body is in order once ComfyUI's own bound is raised with it."""
    config = Config()
    larger = replace(
        config,
        limits=replace(config.limits, body=1 << 30),
        backend=replace(config.backend, args=("--max-upload-size", "1024")),
    )
    assert list(findings(larger)) == []


def test_open_to_everybody_is_said() -> None:
    """Who lets others in without a key reads so."""
    config = Config()
    config = replace(
        config,
        listen=replace(config.listen, host=("192.0.2.1",)),
        auth=replace(config.auth, allow_open=True),
        tls=replace(config.tls, certificate="cert.pem"),
    )
    ((message, warning),) = [(found.message, found.warning) for found in findings(config)]
    assert "192.0.2.1 can be reached from other machines" in message
    assert warning


def test_other_address_may_share_the_port() -> None:
    """A backend on loopback may have a port that the gateway uses on another address only."""
    messages = told("listen", host=("192.0.2.1",), front_port=8188)
    assert not any("itself" in message for message, _ in messages)


def test_loopback() -> None:
    """Loopback is judged by address; of names only localhost is."""
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert is_loopback("LocalHost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
