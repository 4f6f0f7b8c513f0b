"""The command line: ``comfy-gateway up``, ``check`` and ``--version``; all other commands are in ``gateway.tools``.

Owns arguments, exit codes and what is printed. Must never import torch, and imports what a command needs only when
that command runs: ``--version`` and ``check`` answer before an event loop could be made.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.build import version
from gateway.config import Config
from gateway.settings.size import with_gpus
from gateway.tools.cli import add_tools, tool
from gateway.tools.completion import completion

DEFAULT_FILE: Final = Path("config.toml")

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong arguments end in 2, as argparse does."""
    own, rest = split_rest(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(own)
    if rest and args.command != "up":
        parser.error("arguments after -- are for ComfyUI, and only `up` starts one")
    if args.command == "check":
        return _check(args.file)
    if args.command == "up":
        return _up(args, rest)
    if args.command is None:
        parser.print_help()
        return EXIT_OK
    if args.command == "completion":
        print(completion(parser, args.shell))
        return EXIT_OK
    return tool(args)


def split_rest(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and what after it."""
    own = list(argv)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def effective(config: Config, args: argparse.Namespace, rest: Sequence[str], env: Mapping[str, str]) -> Config:
    """The file's configuration with the environment's and then the command line's changes.

    Raises ``ValueError`` with a line for the user.
    """
    config = of_size(config, args.gpus, env)
    backend, *further = (
        replace(
            each,
            start=each.start and not args.no_backend,
            comfyui=args.comfyui if args.comfyui is not None else each.comfyui,
            python=args.python if args.python is not None else each.python,
            args=(*each.args, *rest),
        )
        for each in config.backends
    )
    return replace(config, backend=backend, further=tuple(further))


def of_size(config: Config, gpus: int | None, env: Mapping[str, str]) -> Config:
    """The configuration for as many GPUs as the command line says, else ``COMFY_NUM_GPUS``, else itself.

    Raises ``ValueError`` with a line for the user.
    """
    if gpus is None and (text := env.get("COMFY_NUM_GPUS", "").strip()):
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"COMFY_NUM_GPUS is {text!r}; it must be a whole number")
        gpus = int(text)
    return config if gpus is None else with_gpus(config, gpus)


def _check(file: Path) -> int:
    from gateway.check import check, failed, render  # noqa: PLC0415 (see the module's first lines)

    try:
        problems = check(file, lambda config: of_size(config, None, os.environ))
    except ValueError as error:
        print(f"comfy-gateway: {error}", file=sys.stderr)
        return EXIT_FAILED
    bad = failed(problems)
    print(render(file, problems), file=sys.stderr if bad else sys.stdout)
    return EXIT_FAILED if bad else EXIT_OK


def _up(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from gateway.config_load import ConfigError, load  # noqa: PLC0415
    from gateway.opening import StartError  # noqa: PLC0415
    from gateway.run import run  # noqa: PLC0415

    def change(config: Config) -> Config:
        return effective(config, args, rest, os.environ)

    file = args.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)

    def read() -> tuple[Config, Sequence[object]]:
        return load(file, change) if file is not None else (change(Config()), [])

    try:
        config, warnings = read()
        run(config, os.environ, warnings, read)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except (StartError, ValueError) as error:
        print(f"comfy-gateway: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="comfy-gateway", description="One port per GPU, each a complete ComfyUI, and a balanced front door."
    )
    parser.add_argument("--version", action="version", version=f"comfy-gateway {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    up = commands.add_parser(
        "up",
        help="start the backend and the gateway in front of it",
        usage="comfy-gateway up [options] [-- COMFYUI ARGUMENTS]",
    )
    up.add_argument("--config", type=Path, metavar="FILE", help="settings (default ./config.toml if it is there)")
    up.add_argument("--no-backend", action="store_true", help="somebody else runs the backend at [backend] url")
    up.add_argument("--comfyui", metavar="DIR", help="ComfyUI checkout (default COMFYUI_DIR, else the embedded engine)")
    up.add_argument("--python", metavar="PY", help="ComfyUI's interpreter (default DIR/.venv or DIR/venv, else ours)")
    up.add_argument("--gpus", type=int, metavar="N", help="number of GPUs; ports follow the first (COMFY_NUM_GPUS)")
    check = commands.add_parser("check", help="say what is wrong with a configuration file, as nginx -t does")
    check.add_argument("file", type=Path, nargs="?", default=DEFAULT_FILE, metavar="FILE")
    add_tools(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
