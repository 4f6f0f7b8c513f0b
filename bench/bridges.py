"""``python -m bench.bridges``: memory per idle WebSocket bridge, of the gateway and of nginx, in one run.

Both hold the same number of bridges to the same silent backend, one after the other. What is measured is the memory of
the proxy's process alone (``Private`` of ``/proc/PID/smaps_rollup``), before and after; the kernel's socket buffers are
the same for both and not in it. It measures and prints; it never fails a build.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.files import allow_files
from bench.peers import NGINX_FRAME
from bench.stand import find, free_port, wait_for

SPARE_FILES = 200

NGINX = """
  access_log off;
  upstream backend {{ server 127.0.0.1:{origin}; }}
  limit_req_zone $binary_remote_addr zone=all:10m rate=1000000r/s;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      limit_req zone=all burst=1000000 nodelay;
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_read_timeout 1h; proxy_send_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
      proxy_set_header Host $http_host;
      proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-TARGET-GPU 0; proxy_set_header X-Request-ID $request_id;
    }}
  }}
"""


@dataclass
class Figure:
    """What one proxy needs."""

    empty: int
    """Bytes before the first bridge."""
    full: int
    bridges: int

    @property
    def each(self) -> float:
        """Bytes per bridge."""
        return (self.full - self.empty) / self.bridges


def main() -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.bridges", description=__doc__)
    parser.add_argument("--bridges", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    most = (allow_files() - SPARE_FILES) // 2
    bridges = min(args.bridges, most)
    if bridges < args.bridges:
        print(f"only {bridges} bridges: a proxy needs two files for each, and no more files may be open here")
    figures = {"gateway": gateway(bridges)}
    nginx = find("nginx")
    if nginx is None:
        print("nginx is not installed: there is no peer")
    else:
        figures["nginx"] = beside(nginx, bridges)
    for name, figure in figures.items():
        print(f"{name:<8} {figure.each / 1024:6.2f} KiB per bridge, {figure.full / 2**20:6.1f} MiB with {bridges}")
    told = {name: figure.each for name, figure in figures.items()}
    if "nginx" in figures:
        told["ratio"] = figures["gateway"].each / figures["nginx"].each
        print(f"memory of idle bridges ratio {told['ratio']:.2f}")
    if args.json:
        args.json.write_text(json.dumps({"bridges": bridges, **told}, indent=1) + "\n", encoding="utf-8")
    return 0


def gateway(bridges: int) -> Figure:
    """The gateway's figure; each bridge could be given another backend, as with a journal."""
    port = free_port()
    return measure(bridges, port, lambda origin: module("bench.gateway", port, f"http://127.0.0.1:{origin}", "hold"))


def beside(nginx: str, bridges: int) -> Figure:
    """nginx's figure."""
    port = free_port()
    with tempfile.TemporaryDirectory("-comfy-gateway-bench") as name:
        folder = Path(name)

        def start(origin: int) -> "subprocess.Popen[str]":
            frame = NGINX_FRAME.format(folder=folder, name="bridges", inside=NGINX.format(origin=origin, port=port))
            # With less than a sixteenth free, nginx closes connections that have not asked yet.
            frame = frame.replace("worker_connections 4096", f"worker_connections {3 * bridges}")
            file = folder / "bridges.conf"
            file.write_text(frame, encoding="utf-8")
            return subprocess.Popen(
                [nginx, "-p", str(folder), "-c", str(file)], stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, text=True
            )

        return measure(bridges, port, start)


def measure(bridges: int, port: int, start: "Callable[[int], subprocess.Popen[str]]") -> Figure:
    """Hold the bridges over the proxy that ``start`` gives for a backend's port, and look at its memory."""
    origin = free_port()
    processes = [module("bench.bridge_ends", "serve", origin)]
    try:
        wait_for(origin)
        processes.append(proxy := start(origin))
        wait_for(port)
        # What comes once, whatever the number: buckets, caches, the first pages of the heap.
        opened(warm := module("bench.bridge_ends", "hold", port, 20), 20)
        end(warm)
        empty = private(proxy.pid)
        processes.append(clients := module("bench.bridge_ends", "hold", port, bridges))
        opened(clients, bridges)
        return Figure(empty, private(proxy.pid), bridges)
    finally:
        for process in reversed(processes):
            end(process)


def opened(clients: "subprocess.Popen[str]", count: int) -> None:
    """Wait until they say so."""
    assert clients.stdout is not None
    if clients.stdout.readline() != f"held {count}\n":
        raise RuntimeError("the bridges could not be opened")


def private(pid: int) -> int:
    """Bytes of memory that only this process has."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    lines = (line.split() for line in text.splitlines() if line.startswith("Private_"))
    return sum(int(line[1]) * 1024 for line in lines)


def module(name: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start one of the bench's own programs."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> None:
    """End a process and everything of it that is open here."""
    process.terminate()
    process.communicate(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
