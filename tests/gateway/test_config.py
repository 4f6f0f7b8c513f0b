"""The config as values: the defaults, and the same for another number of GPUs."""

from dataclasses import replace

import pytest

from gateway.config import Config, Listen
from gateway.settings.size import with_gpus


def test_defaults() -> None:
    """The defaults are the ports and limits that ComfyUI's users had behind nginx."""
    config = Config()
    assert (config.listen.front_port, config.listen.gpu_ports) == (8180, (8181, 8182, 8183, 8184))
    assert config.gpus == 4
    assert config.limits.body == 100 * 1024 * 1024
    assert (config.timeouts.connect, config.timeouts.read, config.timeouts.send) == (60, 600, 600)


@pytest.mark.parametrize(
    ("ports", "n", "result"),
    [
        ((8181, 8182, 8183, 8184), 2, (8181, 8182)),
        ((8181, 8182, 8183, 8184), 4, (8181, 8182, 8183, 8184)),
        ((8181, 8182, 8183, 8184), 6, (8181, 8182, 8183, 8184, 8185, 8186)),
        ((9000, 9100), 3, (9000, 9100, 9101)),
        ((0,), 3, (0, 0, 0)),
    ],
)
def test_other_numbers_of_gpus(ports: tuple[int, ...], n: int, result: tuple[int, ...]) -> None:
    """Ports of fewer GPUs are the first, of more GPUs the next; all else stays."""
    config = Config(listen=Listen(gpu_ports=ports, backlog=7))
    changed = with_gpus(config, n)
    assert changed == replace(config, listen=Listen(gpu_ports=result, backlog=7))


@pytest.mark.parametrize(
    ("listen", "n", "says"),
    [
        (Listen(), 0, "1 to 64, not 0"),
        (Listen(gpu_ports=()), 2, "gpu_ports is empty"),
        (Listen(), 65, "1 to 64, not 65"),
        (Listen(gpu_ports=(65535,)), 2, "pass 65535"),
        (Listen(gpu_ports=(8181,), front_port=8183), 3, "front_port 8183"),
        (Listen(gpu_ports=(8182, 8181)), 3, "meet each other"),
    ],
)
def test_no_such_config(listen: Listen, n: int, says: str) -> None:
    """Ports that do not exist or meet others are one line for the user."""
    with pytest.raises(ValueError, match=says):
        with_gpus(Config(listen=listen), n)
