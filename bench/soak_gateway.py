"""The gateway under the soak, impatient, and ready to say what it holds: each line it reads is answered with JSON.

``python -m bench.soak_gateway PORT BACKEND_URL``.
"""

import asyncio
import gc
import json
import sys

from bench.files import allow_files
from bench.gateway import build
from gateway.config import Timeouts
from gateway.server import Server

IMPATIENT = Timeouts(
    send=5.0,
    read=2.0,
    client_head=2.0,
    client_body=5.0,
    client_idle=5.0,
    client_write=5.0,
    backend_idle=2.0,
    bridge_close=1.0,
)


def held(server: Server) -> int:
    """Everything that is there for somebody."""
    bridges = len(server.bridges.open) + len(server.bridges.silent)
    return server.clients + server.busy + bridges + sum(pool.busy + pool.waiting + pool.idle for pool in server.pools)


async def serve(port: int, url: str) -> None:
    """Run until nobody asks any more."""
    server = build(port, url, IMPATIENT)
    await server.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        gc.collect()
        ours = sum(str(type(each).__module__).startswith("gateway.") for each in gc.get_objects())
        print(json.dumps({"tasks": len(asyncio.all_tasks()), "held": held(server), "objects": ours}), flush=True)
    await server.close()


if __name__ == "__main__":
    allow_files()
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(int(sys.argv[1]), sys.argv[2]))
