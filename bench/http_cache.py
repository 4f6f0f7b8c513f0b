"""``python -m bench.http_cache FOLDER``: http-cache-tests (npm) against the gateway's cache, and what it says.

FOLDER holds the unpacked package with its dependencies (``npm pack http-cache-tests``, ``npm install node-fetch@2
liquidjs@9`` in it). The suite's own server is the backend. Its paths are none that the gateway shares, so every GET of
them is taken for a web file here, and the fields in which it numbers its requests for harmless; ``--off`` leaves the
cache out. Measures and prints; judges nothing: the suite's
results are of several kinds, and [docs/http.md] says what the failures mean.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench.stand import free_port, wait_for
from gateway import __version__
from gateway.cache import asking
from gateway.config import Config
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.ratelimit import Limiter
from gateway.request import Kind
from gateway.server import Server


async def run(folder: Path, *, cache: bool) -> dict[str, Any]:
    """The suite's results: ``True``, or what went wrong, by test."""
    origin, port = free_port(), free_port()
    node = ["node", "--no-warnings"]
    environment = os.environ | {"npm_config_protocol": "http", "npm_package_config_id": ""}
    with tempfile.NamedTemporaryFile() as pid:
        serving = environment | {"npm_config_port": str(origin), "npm_config_pidfile": pid.name}
        server = await asyncio.create_subprocess_exec(
            *node, "server/server.mjs", cwd=folder, env=serving, stdout=subprocess.DEVNULL
        )
        try:
            await asyncio.to_thread(wait_for, origin)
            gateway = await start(port, f"http://127.0.0.1:{origin}", cache=cache)
            asking = environment | {"npm_config_base": f"http://127.0.0.1:{port}"}
            suite = await asyncio.create_subprocess_exec(
                *node, "cli.mjs", cwd=folder, env=asking, stdout=subprocess.PIPE
            )
            async with asyncio.timeout(240):
                out, _ = await suite.communicate()
            await gateway.close()
        finally:
            server.terminate()
            await server.wait()
    found: dict[str, Any] = json.loads(out[out.index(b"{") :])
    return found


async def start(port: int, url: str, *, cache: bool) -> Server:
    """The gateway's data path with its defaults, but for limits and log."""
    config = Config()
    config = replace(
        config,
        listen=replace(config.listen, front_port=0, gpu_ports=(port,)),
        backend=replace(config.backend, url=url, start=False),
        rate=replace(config.rate, enabled=False),
        log=replace(config.log, access=False),
        cache=replace(config.cache, enabled=cache),
    )
    fleet = Fleet(1)
    fleet.members[0].backend_up("suite")
    server = Server(config, fleet, Limiter(config.rate, 1), Metrics(1, __version__), {})
    await server.start()
    return server


def group_of(kind: Kind, target: bytes) -> asking.Group | None:
    """A target that the suite tests is a file; those of its own bookkeeping are not."""
    return asking.Group.FILE if target.startswith(b"/test/") else None


def kinds(folder: Path) -> dict[str, str]:
    """``required`` (RFC 9111), ``optimal`` or ``check`` (only to see), by test."""
    script = "import s from './tests/index.mjs'; const k = {}; for (const g of s) for (const t of g.tests) "
    script += "k[t.id] = t.kind ?? 'required'; console.log(JSON.stringify(k))"
    done = subprocess.run(
        ["node", "--no-warnings", "--input-type=module", "-e", script], cwd=folder, capture_output=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run it and print what passed, and what did not and why."""
    parser = argparse.ArgumentParser(prog="python -m bench.http_cache", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the unpacked package")
    parser.add_argument("--off", action="store_true", help="without the cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the suite's results there")
    chosen = parser.parse_args()
    own = re.compile(asking.NOT_IN_KEY.pattern + rb"|^(?:test-name|test-id|req-num):[^\r]*\r\n")
    with mock.patch("gateway.cache.answering.group_of", group_of), mock.patch.object(asking, "NOT_IN_KEY", own):
        results = asyncio.run(run(chosen.folder, cache=not chosen.off))
    by_kind = kinds(chosen.folder)
    passed = [name for name, result in results.items() if result is True]
    print(f"{len(passed)} of {len(results)} passed")
    for kind in ("required", "optimal", "check"):
        mine = [name for name in results if by_kind.get(name, "required") == kind]
        reasons = Counter(result[0] for name in mine if (result := results[name]) is not True)
        print(f"  {kind:<9} {sum(results[name] is True for name in mine):>3} of {len(mine)}   not: {dict(reasons)}")
    for name in sorted(set(results) - set(passed), key=lambda name: (by_kind.get(name, "required"), name)):
        kind, text = results[name][0], re.sub(r"\s+", " ", str(results[name][1]))
        print(f"  {by_kind.get(name, 'required'):<9} {name:<45} {kind}: {text[:90]}")
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
