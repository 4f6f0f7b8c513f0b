"""Starts the backend: a ComfyUI made parallel where one is named, else the embedded engine.

Owns the choice of the body and the exit code. Knows nothing of what either does once it runs.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from backend import instance, process
from backend.contract import EXIT_OK, EXIT_PORT_IN_USE, EXIT_USAGE
from backend.options import Options, parse
from backend.ready import announce

__all__ = ["Options", "announce", "main"]

log = logging.getLogger("backend.launch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the backend until it is told to stop; returns the exit code (see ``backend.contract``)."""
    options = parse(sys.argv[1:] if argv is None else argv, os.environ)
    process.log_to_stderr()
    if options.exit_with_parent:
        process.exit_with_parent()
    if options.gateway_lock is not None:
        process.exit_without_gateway(options.gateway_lock, options.orphan)
    if options.instance is not None:
        try:
            options, hidden = instance.alone(options, os.environ, instance.nvidia_devices())
        except ValueError as error:
            log.error("%s", error)  # noqa: TRY400 (the line is for the user)
            return EXIT_USAGE
        os.environ.update(hidden)
    if options.comfyui is not None:
        return _run_comfyui(options)
    log.info("no ComfyUI named: the embedded engine starts. Name one with --comfyui DIR or COMFYUI_DIR.")
    return _run_embedded(options)


def _run_comfyui(options: Options) -> int:
    if options.port:
        # ComfyUI would find out after minutes of loading.
        try:
            process.listen(options.host, options.port).close()
        except OSError as error:
            return _cannot_listen(error)
    from backend.overlay.start import run  # noqa: PLC0415 (each body is loaded only when it is the one)

    return run(options)


def _run_embedded(options: Options) -> int:
    try:
        listening = process.listen(options.host, options.port)
    except OSError as error:
        return _cannot_listen(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until the engine listens for them itself; loading torch takes seconds
    try:
        from backend.embedded.start import run  # noqa: PLC0415 (loads torch)
    except ModuleNotFoundError as error:
        listening.close()
        log.error(  # noqa: TRY400 (the line is for the user; a traceback says no more)
            "the embedded engine needs %s: pip install 'comfy-gateway[embedded]', or name a ComfyUI with --comfyui",
            error.name,
        )
        return EXIT_USAGE
    return run(options, listening)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # Not by an exception: one that passes through the imports of torch can come out as another, or not at all.
    os._exit(EXIT_OK)


def _cannot_listen(error: OSError) -> int:
    log.error("%s", error)
    return EXIT_PORT_IN_USE if isinstance(error, process.PortInUseError) else EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
