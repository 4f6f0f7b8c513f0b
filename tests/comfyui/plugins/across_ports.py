"""A pytest plugin for ComfyUI's own suite: every client it makes goes to the next of ``PROOF_PORTS``.

Loaded by name into a run of that suite, so that its two-client tests hold across lanes. Changes where a client connects
and nothing else.
"""

import itertools
import os
import sys
from typing import Any


def pytest_collection_finish() -> None:
    """The suite's modules are loaded: spread its client class over the ports."""
    client = sys.modules["tests.execution.test_execution"].ComfyClient
    ports = itertools.cycle(int(port) for port in os.environ["PROOF_PORTS"].split(","))
    connect = client.connect

    def elsewhere(self: Any, listen: str = "127.0.0.1", port: int = 0, client_id: str | None = None) -> None:
        port = next(ports)
        print(f"across_ports: a client goes to {port}")
        connect(self, listen, port, *([client_id] if client_id else []))

    client.connect = elsewhere
