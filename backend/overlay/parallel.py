"""Runs ComfyUI with the overlay: the order of steps, and the end.

Owns that order: prepare the environment, load, check every name, install, test, serve. Knows no ComfyUI name beyond
``main``'s entry.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from backend import devices, job_lines, share
from backend.contract import EXIT_DEVICE_FAULT, EXIT_OK, EXIT_PORT_IN_USE, EXIT_USAGE, Ready
from backend.faults import before_leaving
from backend.lanes import Lane
from backend.options import Options
from backend.overlay import comfy, fingerprints, ready, routing, scan, selftest, versions, warmup
from backend.overlay.patch import Misfit, PatchSet
from backend.overlay.patches import all_patches, files
from backend.overlay.state import State
from backend.overlay.versions import Version

log = logging.getLogger("backend.overlay")

WAY_OUT: Final = "COMFY_MULTI_GPU_SCHED=0 runs plain ComfyUI on one GPU"
FLUSH_SECONDS: Final = 1.0
"""After a lane broke, so that its job's error still reaches the client."""


def run(checkout: comfy.Checkout, options: Options) -> int:
    """Run until told to stop; returns the exit code if ComfyUI was not started, else ends the process itself."""
    version, exact = versions.choose(checkout.version, checkout.folder)
    lacking = [
        Misfit("comfy.cli_args", f"{word} is not known, with which {version.number} is started", required=True)
        for word in versions.unknown_words(checkout.folder, version)
    ]
    if lacking:
        log.error("%s", refusal(checkout.version, exact, options.allow_unknown, lacking))
        return EXIT_USAGE
    try:
        main, lanes = _load(checkout, version, options)
    except (comfy.ArgumentError, ValueError) as error:
        log.error("%s", error)  # noqa: TRY400 (the line is for the user; a traceback says no more)
        return EXIT_USAGE
    os.environ[share.SWITCH] = options.share_weights  # the patches are made from the lanes alone
    state = State(lanes, version, options.serialize, options.issue_lock, options.threads)
    patches = PatchSet(all_patches(state))
    problem = refusal(checkout.version, exact, options.allow_unknown, [*fingerprints.check(version), *patches.check()])
    if problem is not None:
        log.error("%s", problem)
        return EXIT_USAGE
    patches.install()
    log.info(
        "multi-GPU: %d lanes on %s; %d names of ComfyUI %s and torch replaced",
        len(lanes), ", ".join(lane.device for lane in lanes), len(patches.patches), checkout.version,
    )
    return _serve(main, state, checkout, options, patches)


def refusal(number: str, exact: bool, allow_unknown: bool, misfits: list[Misfit]) -> str | None:
    """Why this ComfyUI is not started with the overlay and what to do instead; ``None`` when it is."""
    required = [misfit for misfit in misfits if misfit.required]
    tried = ", ".join(version.number for version in versions.known())
    if required:
        more = f" (and {len(required) - 1} more)" if len(required) > 1 else ""
        return f"ComfyUI {number} does not fit: {required[0]}{more}. The overlay knows {tried}. {WAY_OUT}."
    if not exact and not allow_unknown:
        return (
            f"ComfyUI {number} is untried: the overlay knows {tried}. All names fit, so allow_unknown = true "
            f"in [backend] of config.toml starts it all the same; {WAY_OUT}."
        )
    return None


def _load(checkout: comfy.Checkout, version: Version, options: Options) -> tuple[Any, list[Lane]]:
    only_cpu = options.cpu or "--cpu" in options.comfyui_args or (
        bool(options.devices) and all(name == "cpu" for name in options.devices)
    )
    arguments = comfy.arguments(options, only_cpu)
    added = version.arguments(arguments)
    comfy.enter(checkout, [*arguments, *(word for word, _ in added)])
    args = comfy.parse_arguments()
    comfy.check_arguments(args, options.gpus)
    comfy.prepare(args)
    names = devices.find(options.gpus, options.devices, only_cpu)
    if all(name == "cpu" for name in names):
        args.cpu = True
    main = comfy.load()
    job_lines.install()  # after ComfyUI has put streams of its own in place
    for word, why in added:
        log.info("ComfyUI %s is started with %s: %s", checkout.version, word, why)
    for warns, note in version.notes(arguments):
        log.log(logging.WARNING if warns else logging.INFO, "ComfyUI %s: %s", checkout.version, note)
    return main, [Lane(index, name) for index, name in enumerate(names)]


def _serve(main: Any, state: State, checkout: comfy.Checkout, options: Options, patches: PatchSet) -> int:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    _, server, start_all = main.start_comfyui(loop)
    routing.around(server)
    if options.instance is not None:
        files.apart_from_others(Path(sys.modules["folder_paths"].get_output_directory()))
    for change in patches.undone():
        log.warning("since the overlay was installed, a custom node changed this: %s", change)
    scan.in_background(*scan.loaded_from())
    for pack in state.packs.unknown(sys.modules["nodes"].NODE_CLASS_MAPPINGS):
        log.warning("serialize names %s, but no node comes from a pack of that name", pack)
    problems = selftest.run(state)
    if problems:
        log.error("ComfyUI %s fails the self-test: %s. %s.", checkout.version, "; ".join(problems), WAY_OUT)
        _leave(EXIT_USAGE)
    names = [devices.full_name(lane.device) for lane in state.lanes]
    line = Ready(ready.url(options), f"comfyui {checkout.version}", names, os.getpid())
    try:
        code = loop.run_until_complete(_until_stopped(state, start_all, line, options))
    finally:
        with contextlib.suppress(Exception):
            state.version.close(main)
        main.cleanup_temp()
    _leave(code)
    return code


async def _until_stopped(state: State, start_all: Any, line: Ready, options: Options) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    leaving: list[asyncio.Task[None]] = []

    def stop(code: int) -> None:
        if not stopped.done():
            stopped.set_result(code)

    def told() -> None:
        if stopped.done():
            os._exit(EXIT_OK)
        stop(EXIT_OK)

    def fault(lane: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is leaving
            loop.call_soon_threadsafe(lambda: leaving.append(loop.create_task(leave(lane), name=f"lane {lane} broke")))

    async def leave(lane: int) -> None:
        broken = state.lanes[lane].stats.broken
        if broken is not None:
            log.error("[GPU %d] takes no jobs: %s; this process has to be replaced", lane, broken.reason)
            others = [queue for queue in state.queues.lanes if queue.lane.stats.broken is None]
            await before_leaving(broken, lambda: any(queue.currently_running for queue in others), FLUSH_SECONDS)
            stop(EXIT_DEVICE_FAULT)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, told)
    state.watch_faults(fault)
    serving = loop.create_task(start_all(), name="comfyui")
    announcing = loop.create_task(_announce(state, line, options), name="ready line")
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    if stopped.done():
        serving.cancel()
        return stopped.result()
    error = serving.exception()
    if error is None:
        return EXIT_OK
    log.error("ComfyUI's server ended: %s", error, exc_info=error)
    return EXIT_PORT_IN_USE if isinstance(error, OSError) else 1


async def _announce(state: State, line: Ready, options: Options) -> None:
    for event in (*state.warm.values(), state.listening):
        await asyncio.to_thread(event.wait)
    # Each lane's worker collects every few seconds, and all lanes stand still meanwhile: what is here at the start is
    # here to stay, and need not be looked through each time. Executors are not: what is frozen is never collected, and
    # ComfyUI's caches refer to themselves, so that models and pictures in them would outlive every /free.
    gc.collect()
    gc.freeze()
    for queue in state.queues.lanes:
        queue.renew()
    if options.warmup is not None:
        await warmup.run(line.url, options.warmup, len(state.lanes))
    if options.warmup_models:
        await warmup.load(line.url, options.warmup_models, len(state.lanes))
    ready.say(line)


def _leave(code: int) -> None:
    """End now: threads of ComfyUI's pools may be inside a node for minutes, and exiting would wait for them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
