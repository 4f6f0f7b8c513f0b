"""Runs the embedded engine on a listening socket until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import Any

from aiohttp import web

from backend import job_lines, process
from backend.contract import EXIT_DEVICE_FAULT, EXIT_OK, EXIT_USAGE, Ready
from backend.embedded.api_files import FileRoutes
from backend.embedded.api_info import MAX_UPLOAD, InfoRoutes
from backend.embedded.api_jobs import JobRoutes
from backend.embedded.api_preload import PreloadRoutes
from backend.embedded.engine import CannotStart, Engine, build
from backend.embedded.http import middleware
from backend.faults import before_leaving
from backend.lanes import Lane
from backend.options import Options
from backend.ready import announce

log = logging.getLogger("backend.embedded.start")

VERSION = "0.1.0"
WORKERS_STOP = 1.0
"""Seconds a lane's worker gets to notice that its job was stopped."""
FAULT_GRACE = 0.5
"""Seconds for a broken lane's last events to reach their clients."""


def run(options: Options, listening: socket.socket) -> int:
    """Serve until SIGTERM, SIGINT or a device fault; returns the exit code."""
    job_lines.install()
    code, clean = asyncio.run(_serve(options, listening))
    logging.shutdown()
    if not clean:
        # A node that never looks up holds its thread; torch in a daemon thread can crash the interpreter's exit.
        os._exit(code)
    return code


async def _serve(options: Options, listening: socket.socket) -> tuple[int, bool]:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    leaving: list[asyncio.Task[None]] = []

    def fault(lane: Lane) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is leaving
            loop.call_soon_threadsafe(lambda: leaving.append(loop.create_task(leave(lane), name="lane broke")))

    async def leave(lane: Lane) -> None:
        broken = lane.stats.broken
        if broken is not None:
            log.error("lane %d takes no jobs: %s; this process has to be replaced", lane.index, broken.reason)
            await before_leaving(broken, lambda: others_run(engine), FAULT_GRACE)
            end(EXIT_DEVICE_FAULT)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, EXIT_OK)
    try:
        engine = build(options, loop, fault)
    except (OSError, RuntimeError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 (the line is for the user)
        return EXIT_USAGE, True
    runner = web.AppRunner(application(engine), access_log=None, shutdown_timeout=0.5)
    try:
        if await _warm(engine, ended):
            await runner.setup()
            await web.SockSite(runner, listening).start()
            devices = [lane.device for lane in engine.lanes]
            log.info("%d lane(s): %s", len(devices), ", ".join(devices))
            announce(Ready(process.url(listening), f"embedded {VERSION}", devices, os.getpid()))
        code = await ended
        log.info("stopping")
    except CannotStart as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 (the line is for the user)
        code = EXIT_USAGE
    engine.jobs.close()
    await engine.hub.close()
    await runner.cleanup()
    return code, await asyncio.to_thread(engine.stop, WORKERS_STOP)


def others_run(engine: Engine) -> bool:
    """Whether a lane that is not broken is at a job."""
    return any(engine.jobs.running(lane.index) for lane in engine.lanes if lane.stats.broken is None)


async def _warm(engine: Engine, ended: asyncio.Future[int]) -> bool:
    """Make the lanes ready; false when the process was told to stop meanwhile."""
    warming = asyncio.get_running_loop().create_task(engine.warm(), name="warm-up")
    either: list[asyncio.Future[Any]] = [warming, ended]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        warming.cancel()
        return False
    await warming
    return True


def application(engine: Engine) -> web.Application:
    """All routes, each also under ``/api``."""
    app = web.Application(client_max_size=MAX_UPLOAD, middlewares=[middleware(len(engine.lanes))])
    routes = [*JobRoutes(engine).routes(), *FileRoutes(engine.files).routes(), *InfoRoutes(engine).routes(),
              *PreloadRoutes(engine).routes()]
    app.add_routes(routes)
    app.add_routes([web.route(each.method, f"/api{each.path}", each.handler) for each in routes])
    return app
