"""What is measured: an origin, the gateway before it, and nginx before it, each a process of its own on free ports."""

import contextlib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Self

SMALL = 150
BIG = 2 * 1024 * 1024

# What nginx needs to keep to itself wherever it runs.
NGINX_FRAME = """
worker_processes 1; daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {folder}/{name}-1; proxy_temp_path {folder}/{name}-2; fastcgi_temp_path {folder}/{name}-3;
  uwsgi_temp_path {folder}/{name}-4; scgi_temp_path {folder}/{name}-5;
  {inside}
}}
"""

ORIGIN = """
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 100m;
    location = /sink {{ client_body_in_single_buffer on; client_body_buffer_size 1m; proxy_pass http://127.0.0.1:{port}/small;
                        proxy_method GET; proxy_pass_request_body off; proxy_set_header Content-Length ""; }}
    location / {{ root {folder}/www; }}
  }}
"""

# The same duties as the gateway: a limit that passes, forwarding fields, an id, the GPU, kept-alive connections.
PROXY = """
  limit_req_zone $binary_remote_addr zone=all:10m rate=1000000r/s;
  upstream backend {{ server 127.0.0.1:{origin}; keepalive 32; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 100m;
    location / {{
      limit_req zone=all burst=1000000 nodelay;
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_connect_timeout 60s; proxy_read_timeout 600s; proxy_send_timeout 600s;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-TARGET-GPU 0;
      proxy_set_header X-Request-ID $request_id;
      proxy_hide_header X-Request-ID;
      add_header X-Request-ID $request_id;
    }}
  }}
"""


@dataclass
class Peer:
    """One proxy under load."""

    pid: int
    port: int


class Stand:
    """Starts everything when entered, and ends it when left. ``peers`` maps names to what is measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peers: dict[str, Peer] = {}
        self.nginx = nginx_path()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def has_nginx(self) -> bool:
        """Whether there is a peer to compare with."""
        return self.nginx is not None

    def __enter__(self) -> Self:
        www = self.folder / "www"
        www.mkdir()
        (www / "small").write_bytes(b"a" * SMALL)
        (www / "big").write_bytes(bytes(BIG))
        try:
            origin = self._origin()
            gateway = free_port()
            process = self._start([sys.executable, "-m", "bench.gateway", str(gateway), f"http://127.0.0.1:{origin}"])
            self.peers["gateway"] = Peer(process.pid, gateway)
            if self.nginx:
                port = free_port()
                process = self._nginx("proxy", PROXY.format(origin=origin, port=port))
                self.peers["nginx"] = Peer(process.pid, port)
            for peer in self.peers.values():
                wait_for(peer.port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _origin(self) -> int:
        port = free_port()
        if self.nginx:
            self._nginx("origin", ORIGIN.format(port=port, folder=self.folder))
        else:
            self._start([sys.executable, "-m", "bench.origin", str(port), str(self.folder / "www")])
        wait_for(port)
        return port

    def _nginx(self, name: str, inside: str) -> subprocess.Popen[bytes]:
        file = self.folder / f"{name}.conf"
        file.write_text(NGINX_FRAME.format(folder=self.folder, name=name, inside=inside), encoding="utf-8")
        return self._start([str(self.nginx), "-p", str(self.folder), "-c", str(file)])

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)


def nginx_path() -> str | None:
    """Where nginx is, also when its folder is not in the user's PATH."""
    return which("nginx") or which("nginx", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, seconds: float = 15.0) -> None:
    """Return when something listens on the port."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.02)
