"""Starts ComfyUI with the overlay, or as it is.

Owns the choice between the two. Imports the overlay only when it is the one: a plain ComfyUI has none of it.
"""

import dataclasses
import logging
import os
import threading
from pathlib import Path

from backend import process
from backend.contract import EXIT_OK, EXIT_USAGE, Ready
from backend.options import Options
from backend.overlay import comfy, ready

log = logging.getLogger("backend.overlay")


def run(options: Options) -> int:
    """Run until told to stop; returns the exit code. The process may also end inside, when threads hold it."""
    options = _settled(options)
    try:
        checkout = comfy.find(options.comfyui or Path())
        comfy.refuse_own(options.comfyui_args)
    except (comfy.NotComfyUIError, comfy.ArgumentError) as error:
        log.error("%s", error)  # noqa: TRY400 (the line is for the user; a traceback says no more)
        return EXIT_USAGE
    try:
        return _run(checkout, options)
    except ModuleNotFoundError as error:
        if (problem := comfy.missing(error, checkout)) is None:
            raise
        log.error("%s", problem)  # noqa: TRY400 (the line is for the user; a traceback says no more)
        return EXIT_USAGE


def _run(checkout: comfy.Checkout, options: Options) -> int:
    if not options.sched:
        return _run_plain(checkout, options)
    from backend.overlay import parallel  # noqa: PLC0415 (plain ComfyUI does without all of it)

    return parallel.run(checkout, options)


def _settled(options: Options) -> Options:
    """With paths that survive a change of folder, and for port 0 one that is free: ComfyUI does not say its own."""
    if options.warmup is not None:
        options = dataclasses.replace(options, warmup=options.warmup.absolute())
    if options.port:
        return options
    with process.listen(options.host, 0) as found:
        port: int = found.getsockname()[1]
    return dataclasses.replace(options, port=port)


def plain_arguments(options: Options) -> tuple[str, list[str]]:
    """The one device that plain ComfyUI runs on, the first of those that were named, and its command line."""
    first = options.devices[0] if options.devices else "cuda:0"
    if options.cpu or "--cpu" in options.comfyui_args or first == "cpu":
        return "cpu", comfy.arguments(options, cpu=True)
    words = comfy.arguments(options, cpu=False)
    kind, _, index = first.partition(":")
    if kind == "cuda" and index not in {"", "0"} and "--cuda-device" not in words:
        words += ["--cuda-device", index]
    return first, words


def _run_plain(checkout: comfy.Checkout, options: Options) -> int:
    device, words = plain_arguments(options)
    log.warning(
        "COMFY_MULTI_GPU_SCHED=0: plain ComfyUI %s, nothing patched: one queue on %s, whichever GPU a request names",
        checkout.version, device,
    )
    line = Ready(ready.url(options), f"comfyui {checkout.version} (plain)", [device], os.getpid())
    threading.Thread(
        target=ready.say_when_open, args=(line, options.host, options.port), name="ready line", daemon=True
    ).start()
    comfy.enter(checkout, words)
    comfy.run_as_it_is()
    return EXIT_OK
