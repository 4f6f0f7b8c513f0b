"""The load: closed loops of raw requests from one process, and what a process has used of the CPU.

``wrk`` where it exists, else a loop of our own; both keep a number of connections busy all the time.
"""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One kind of request."""

    name: str
    target: str
    method: str
    connections: int
    body: int = 0
    varied: bool = False
    """Whether each request's head differs from the one before on its connection."""


# What a browser sends with a fetch.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "Accept-Language": "en-US,en;q=0.9",
}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICK


def run_load(port: int, row: Row, seconds: float) -> tuple[int, float]:
    """Keep the connections busy for some seconds: requests answered with 200, and how long it took."""
    if shutil.which("wrk"):
        return _wrk(port, row, seconds)
    return asyncio.run(_own(port, row, seconds))


def _wrk(port: int, row: Row, seconds: float) -> tuple[int, float]:
    script = f'wrk.method = "{row.method}"\n'
    if row.body:
        script += f'wrk.body = string.rep("x", {row.body})\n'
    if row.varied:
        script += 'local n = 0\nrequest = function() n = n + 1; wrk.headers["X-N"] = n; return wrk.format() end\n'
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{row.connections}", f"-d{max(1, round(seconds))}s", "-s", file.name]
        for name, value in HEADERS.items():
            command += ["-H", f"{name}: {value}"]
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{row.target}"], capture_output=True, text=True, check=True
        ).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"{row.name}: not every request was answered with 200:\n{out}")
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s)", out)
    if found is None:
        raise RuntimeError(f"wrk says something new:\n{out}")
    return int(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1)


async def _own(port: int, row: Row, seconds: float) -> tuple[int, float]:
    start = time.perf_counter()
    end = start + seconds

    async def one(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"{row.method} {row.target} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()]
        if row.body:
            lines.append(f"Content-Length: {row.body}")
        done = 0
        while time.perf_counter() < end:
            head = [*lines, f"X-N: {number}-{done}"] if row.varied else lines
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + b"x" * row.body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"{row.name}: {answer[:60]!r}")
            length = re.search(rb"(?i)content-length: (\d+)", answer)
            await reader.readexactly(int(length[1]) if length else 0)
            done += 1
        writer.close()
        await writer.wait_closed()
        return done

    counts = await asyncio.gather(*[one(number) for number in range(row.connections)])
    return sum(counts), time.perf_counter() - start
