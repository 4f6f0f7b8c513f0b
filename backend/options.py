"""The backend's command line as a frozen value. Pure: reads what it is given, touches nothing.

Everything after ``--`` is kept for ComfyUI as it stands.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend import devices, share
from backend.issue_lock import MODES, Mode

DEFAULT_GPUS = 4
MOST_GPUS = 64


@dataclass(frozen=True)
class Options:
    """What one start of the backend was asked for."""

    host: str = "127.0.0.1"
    port: int = 8188
    gpus: int = DEFAULT_GPUS
    """Lanes; with ``devices`` given, as many as those."""
    devices: tuple[str, ...] = ()
    """One per lane; empty: to be found."""
    cpu: bool = False
    comfyui: Path | None = None
    """Folder of a ComfyUI checkout; ``None``: the embedded engine."""
    data: Path = Path("data")
    """Folder of the embedded engine's models, input, output and temp."""
    serialize: tuple[str, ...] = ()
    allow_unknown: bool = False
    issue_lock: Mode = "auto"
    threads: int = 0
    """Torch's threads for one operation of a lane; 0: as torch chooses."""
    share_weights: str = "on"
    """One of ``share.MODES``."""
    warmup: Path | None = None
    warmup_models: tuple[str, ...] = ()
    """Folder type and name of models that every lane loads before it is ready: ``checkpoints/x.safetensors``."""
    exit_with_parent: bool = False
    gateway_lock: Path | None = None
    """A file that is locked while a gateway is there to serve."""
    orphan: float = 60.0
    """Seconds without one after which this process ends."""
    instance: int | None = None
    """Which of several processes it is that work in the same folders, one per GPU; ``None``: the only one."""
    sched: bool = True
    """``COMFY_MULTI_GPU_SCHED``: false runs plain ComfyUI, nothing patched (embedded: one lane)."""
    testing: bool = False
    """Embedded: also offer the nodes that provoke failures."""
    comfyui_args: tuple[str, ...] = ()


def parse(argv: Sequence[str], env: Mapping[str, str]) -> Options:
    """Options from the command line, with defaults from the environment; exits as argparse does on a wrong one."""
    own, rest = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    parser = _parser(env)
    args = parser.parse_args(own)
    try:
        names = tuple(devices.normal(name) for name in _words(args.devices))
    except ValueError as error:
        parser.error(f"--devices: {error}")
    gpus = args.gpus if args.gpus is not None else len(names) or _default_gpus(parser, env)
    if gpus < 1:
        parser.error(f"--gpus: {gpus}; at least one is needed")
    if gpus > MOST_GPUS:
        parser.error(f"--gpus or COMFY_NUM_GPUS: {gpus}; {MOST_GPUS} is the most")
    if args.threads < 0:
        parser.error(f"--threads: {args.threads}; 0 leaves it to torch")
    if names and len(names) != gpus:
        parser.error(f"--gpus says {gpus}, --devices names {len(names)}; say one of them, or the same number")
    comfyui = args.comfyui if args.comfyui is not None else env.get("COMFYUI_DIR", "")
    return Options(
        host=args.host,
        port=args.port,
        gpus=gpus,
        devices=names,
        cpu=args.cpu,
        comfyui=Path(comfyui) if comfyui else None,
        data=args.data,
        serialize=tuple(_words(args.serialize)),
        allow_unknown=args.allow_unknown,
        issue_lock=args.issue_lock,
        threads=args.threads,
        share_weights=args.share_weights or _share_weights(parser, env),
        warmup=args.warmup,
        warmup_models=tuple(args.warmup_model),
        exit_with_parent=args.exit_with_parent,
        gateway_lock=args.gateway_lock,
        orphan=args.orphan,
        instance=args.instance,
        sched=env.get("COMFY_MULTI_GPU_SCHED", "1").strip().lower() not in {"0", "false", "off", "no"},
        testing=args.testing_nodes,
        comfyui_args=tuple(rest),
    )


def _default_gpus(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> int:
    text = env.get("COMFY_NUM_GPUS", "").strip()
    if not text:
        return DEFAULT_GPUS
    if not (text.isascii() and text.isdigit()):
        parser.error(f"COMFY_NUM_GPUS is {text!r}; it must be a whole number")
    return int(text)


def _share_weights(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> str:
    try:
        return share.mode(env)
    except ValueError as error:
        parser.error(str(error))


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backend",
        description="One process, one lane per GPU, serving ComfyUI's API. Arguments after -- go to ComfyUI.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, default=8188, help="port to listen on; 0 lets the system choose (default 8188)")
    add("--gpus", type=int, default=None, help="number of lanes (default COMFY_NUM_GPUS, else 4)")
    add("--devices", default="", help="one device per lane: cuda:0,cuda:1,…")
    add("--cpu", action="store_true", help="virtual lanes on the CPU")
    add("--comfyui", default=None, metavar="DIR", help="ComfyUI checkout (default COMFYUI_DIR, else embedded engine)")
    add("--data", type=Path, default=Path("data"), help="embedded engine: models, input, output and temp")
    add("--serialize", default="", metavar="PACK,…", help="custom node packs whose jobs run one at a time")
    add("--allow-unknown", action="store_true", help="run on an untried ComfyUI when every patched name fits")
    add("--issue-lock", choices=MODES, default="auto", help="one lane at a time issues a model's step (default auto)")
    add("--threads", type=int, default=0, help="torch's threads for one operation of a lane (default torch's own)")
    add("--share-weights", choices=share.MODES, default=None,
        help="one host copy of the weights for all lanes (default COMFY_SHARE_WEIGHTS, else on)")
    add("--warmup", type=Path, default=None, metavar="FILE", help="API-format workflow each lane runs before ready")
    add("--warmup-model", action="append", default=[], metavar="FOLDER/NAME", help="model each lane loads before ready")
    add("--exit-with-parent", action="store_true", help="stop when the process that started this one is gone")
    add("--gateway-lock", type=Path, metavar="FILE", help="stop when nobody holds a lock on FILE for --orphan seconds")
    add("--orphan", type=float, default=60.0, metavar="SECONDS", help="see --gateway-lock (default 60)")
    add("--instance", type=int, metavar="N", help="the process of GPU N where each GPU has one, in the same folders")
    add("--testing-nodes", action="store_true", default=env.get("COMFY_TESTING_NODES", "") == "1",
        help="embedded engine: also offer nodes that sleep and fail on purpose")
    return parser
