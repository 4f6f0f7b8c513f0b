"""The data path is tested on both event loops it runs on; everything else on asyncio's own."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

DATA_PATH = ("test_proxy", "test_server", "test_ws")


@pytest.hookimpl
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Name the event loops that a test runs on."""
    if item.path.name.startswith(DATA_PATH):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
    return {"asyncio": asyncio.SelectorEventLoop}
