"""nginx as a proxy before a backend, where it is installed: the peer of differential tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which

from tests.conftest import pick_ports
from tests.doubles.http_client import raw

CONFIG = """
worker_processes 1; daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 100m; client_header_timeout 10s;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
    }}
  }}
}}
"""


def nginx() -> str | None:
    """Where it is; ``None`` where it is not installed."""
    return which("nginx") or which("nginx", path="/usr/sbin:/usr/local/sbin")


async def listens(port: int) -> bool:
    """Whether anybody does."""
    try:
        async with raw(port):
            return True
    except OSError:
        return False


@contextlib.asynccontextmanager
async def nginx_before(backend: int, folder: Path) -> AsyncIterator[int]:
    """Its port."""
    (port,) = pick_ports(1)
    file = folder / "nginx.conf"
    file.write_text(CONFIG.format(folder=folder, port=port, backend=backend), encoding="utf-8")
    program = nginx()
    assert program is not None
    process = await asyncio.create_subprocess_exec(program, "-p", folder, "-c", file, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while not await listens(port):
                assert process.returncode is None, "nginx has ended"
                await asyncio.sleep(0.02)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
