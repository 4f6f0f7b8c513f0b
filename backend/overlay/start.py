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
    except comfy.NotComfyUIError as error:
        log.error("%s", error)  # noqa: TRY400 (the line is for the user; a traceback says no more)
        return EXIT_USAGE
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


def _run_plain(checkout: comfy.Checkout, options: Options) -> int:
    cpu = options.cpu or "--cpu" in options.comfyui_args
    device = options.devices[0] if options.devices else "cpu" if cpu else "cuda:0"
    line = Ready(ready.url(options), f"comfyui {checkout.version} (plain)", [device], os.getpid())
    threading.Thread(
        target=ready.say_when_open, args=(line, options.host, options.port), name="ready line", daemon=True
    ).start()
    comfy.enter(checkout, comfy.arguments(options, cpu))
    comfy.run_as_it_is()
    return EXIT_OK
