"""The arguments of the commands beside ``up`` and ``check``, and which function each means.

Imports what a command needs only when it runs.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

from gateway.config import Config
from gateway.tools.door import Door, ToolError

DEFAULT_FILE: Final = Path("config.toml")

Commands = Any
"""What ``argparse`` gives for subcommands; its type has no public name."""


def add_tools(commands: Commands) -> None:
    """Add the commands to the parser."""
    _asking(commands.add_parser("status", help="how every GPU is")).add_argument(
        "--watch", type=_bound, nargs="?", const=2.0, default=0.0, metavar="S", help="again every S seconds (2)"
    )
    submit = _asking(commands.add_parser("submit", help="run a workflow (API format; - is stdin)"), json=False)
    submit.add_argument("workflow", type=Path)
    submit.add_argument("--gpu", type=int, metavar="N", help="on this GPU (default: where it is done first)")
    submit.add_argument("--wait", action="store_true", help="until it has ended, with a progress bar")
    submit.add_argument("-o", dest="folder", type=Path, metavar="DIR", help="save what it makes there (waits)")
    jobs = _asking(commands.add_parser("jobs", help="the jobs that the gateway remembers"))
    jobs.add_argument("--state", default="", metavar="STATES", help="queued,running,succeeded,failed,canceled,lost")
    jobs.add_argument("--limit", type=_whole_bound, default=20, metavar="N")
    cancel = _asking(commands.add_parser("cancel", help="stop jobs, waiting or running"), json=False)
    cancel.add_argument("id", nargs="+")
    for name, text in (("drain", "have the front door give a GPU no new jobs"), ("resume", "give it jobs again")):
        _asking(commands.add_parser(name, help=text), json=False).add_argument("gpu", type=int, metavar="N")
    _asking(commands.add_parser("reload", help="have a running gateway read its settings again"), json=False)
    logs = _asking(commands.add_parser("logs", help="the last lines of a backend"), json=False)
    logs.add_argument("--backend", type=int, default=0, metavar="N", help="which, where there are several (0)")
    logs.add_argument("-n", dest="lines", type=_whole_bound, default=100, metavar="LINES", help="so many (100)")
    logs.add_argument("-f", "--follow", action="store_true", help="and those that come")
    bench = _asking(commands.add_parser("bench", help="what the gateway adds to a small request"), json=False)
    bench.add_argument("--gpu", type=int, default=0, metavar="N", help="whose port's queue is asked for (0)")
    bench.add_argument("--requests", type=_whole_bound, default=100, metavar="N", help="so many each way (100)")
    doctor = commands.add_parser("doctor", help="look at this machine: ports, files, disk, torch, GPUs, ComfyUI, nodes")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="settings (default ./config.toml if it is there)")
    doctor.add_argument("--comfyui", metavar="DIR", help="ComfyUI checkout (default COMFYUI_DIR)")
    _keys_parser(commands.add_parser("keys", help="make, list and revoke the keys that clients show"))
    shell = commands.add_parser("completion", help="print a script: eval \"$(comfy-gateway completion bash)\"")
    shell.add_argument("shell", choices=("bash", "zsh"))


def tool(args: argparse.Namespace) -> int:
    """Run one of them; returns the exit code, and says in one line what is wrong."""
    try:
        return _run(args)
    except ToolError as error:
        print(f"comfy-gateway: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    if args.command == "keys":
        return _keys(args)
    if args.command == "doctor":
        return _doctor(args)
    from gateway.tools import commands  # noqa: PLC0415

    try:
        door = _door(args)
    except ToolError as error:
        kept = "; a running gateway keeps the settings that it has" if args.command == "reload" else ""
        raise ToolError(f"{error}{kept}", error.code) from error
    if args.command == "bench":
        from gateway.tools.bench import bench  # noqa: PLC0415

        backend = _config(args.config).backend.url
        print("\n".join(bench(door, backend, gpu=args.gpu, requests=args.requests)))
        return 0
    if args.command == "status":
        return commands.status(door, as_json=args.json, watch=args.watch)
    if args.command == "jobs":
        return commands.jobs(door, state=args.state, limit=args.limit, as_json=args.json)
    if args.command in {"drain", "resume"}:
        return commands.drain(door, args.gpu, args.command)
    if args.command == "reload":
        return commands.reload(door)
    if args.command == "logs":
        return commands.logs(door, args.backend, lines=args.lines, follow=args.follow)
    if args.command == "cancel":
        return commands.cancel(door, args.id)
    return commands.submit(door, args.workflow, gpu=args.gpu, wait=args.wait, folder=args.folder)


def _door(args: argparse.Namespace) -> Door:
    config = _config(args.config)
    host = next((host for host in config.listen.host if host not in {"0.0.0.0", "::"}), "127.0.0.1")
    scheme = "https" if config.tls.certificate else "http"
    shown = f"[{host}]" if ":" in host else host
    url = args.url or os.environ.get("COMFY_GATEWAY_URL") or f"{scheme}://{shown}:{config.listen.front_port}"
    return Door(url, args.key or os.environ.get("COMFY_GATEWAY_KEY", ""), insecure=args.insecure)


def _config(file: Path | None) -> Config:
    from gateway.config_load import ConfigError, load  # noqa: PLC0415

    file = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    try:
        return load(file)[0] if file is not None else Config()
    except ConfigError as error:
        raise ToolError("; ".join(str(error).splitlines())) from error


def _doctor(args: argparse.Namespace) -> int:
    from dataclasses import replace  # noqa: PLC0415

    from gateway.tools.doctor import BAD, examine, render  # noqa: PLC0415

    config = _config(args.config)
    if args.comfyui:
        config = replace(config, backend=replace(config.backend, comfyui=args.comfyui))
    found = list(examine(config, os.environ))
    print("\n".join(render(found)))
    return 1 if any(each.level == BAD for each in found) else 0


def _keys(args: argparse.Namespace) -> int:
    from gateway.auth import command  # noqa: PLC0415
    from gateway.auth.keys import KeyFileError, Quota, Scope  # noqa: PLC0415

    try:
        folder = Path(_config(args.config).auth.folder)
        if args.action == "add":
            quota = Quota(args.rate, args.jobs, args.gpu_seconds)
            lines = command.add(folder, args.name, Scope(args.scope), quota)
        elif args.action == "revoke":
            lines = command.revoke(folder, args.name)
        else:
            lines = command.show(folder)
    except (KeyFileError, ValueError) as error:
        raise ToolError(str(error)) from error
    # The key alone on stdout, so that a script can take it.
    print(lines[0] if args.action == "add" else "\n".join(lines))
    if args.action == "add":
        print(lines[1], file=sys.stderr)
    return 0


def _asking(parser: argparse.ArgumentParser, *, json: bool = True) -> argparse.ArgumentParser:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default ./config.toml if it is there)")
    parser.add_argument("--url", metavar="URL", help="the front door (COMFY_GATEWAY_URL; default as in the settings)")
    parser.add_argument("--key", metavar="KEY", help="a key (better: COMFY_GATEWAY_KEY, which ps does not show)")
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    if json:
        parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _keys_parser(keys: argparse.ArgumentParser) -> None:
    keys.add_argument("--config", type=Path, metavar="FILE", help="settings (default ./config.toml if it is there)")
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="whose it is: letters, digits, dot, dash, underscore")
    add.add_argument("--scope", choices=("read", "submit", "admin"), default="submit", help="default: submit")
    add.add_argument("--rate", type=_bound, default=0.0, metavar="N", help="submissions a second at most")
    add.add_argument("--jobs", type=_whole_bound, default=0, metavar="N", help="unfinished jobs at most")
    add.add_argument("--gpu-seconds", type=_bound, default=0.0, metavar="N", help="seconds of GPU a day at most")
    revoke = actions.add_parser("revoke", help="end a key at once")
    revoke.add_argument("name")
    listed = actions.add_parser("list", help="who has a key")
    for action in (add, revoke, listed):
        # Before or after the action: what is not given here leaves what was given there.
        action.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _bound(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no bound: it must be above 0")
    return value


def _whole_bound(text: str) -> int:
    value = _bound(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)
