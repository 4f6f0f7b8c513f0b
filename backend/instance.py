"""One process per GPU: what each of several processes that work in the same folders has for itself.

Owns its device, its temp folder and its database; output, input, models and user folder are one for all. Pure but for
the look at which NVIDIA devices there are. Knows nothing of the other processes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backend.options import Options

VISIBLE = "CUDA_VISIBLE_DEVICES"


def nvidia_devices(folder: Path = Path("/dev")) -> int:
    """How many NVIDIA GPUs this machine, or container, has; 0 where that cannot be seen."""
    try:
        return sum(bool(re.fullmatch(r"nvidia[0-9]+", entry.name)) for entry in folder.iterdir())
    except OSError:
        return 0


def alone(options: Options, env: Mapping[str, str], there: int) -> tuple[Options, dict[str, str]]:
    """The options with a device of its own, and the variables that hide the others from this process.

    ``there``: number of NVIDIA GPUs. With fewer of them than processes, processes share them in turn.
    """
    number = options.instance
    if number is None or options.cpu or "--cpu" in options.comfyui_args:
        return options, {}
    listed = [each.strip() for each in env.get(VISIBLE, "").split(",") if each.strip()]
    if options.devices:
        kind, _, index = options.devices[0].partition(":")
        if kind != "cuda":
            return options, {}
        number = int(index or 0)
        if listed and number >= len(listed):
            raise ValueError(f"--devices: {options.devices[0]}, but {VISIBLE} names {len(listed)} device(s)")
    count = len(listed) or there
    if not count and not options.devices:
        return options, {}
    visible = listed[number % len(listed)] if listed else str(number if options.devices else number % count)
    return replace(options, devices=("cuda:0",) if options.devices else ()), {VISIBLE: visible}


def temp_name(instance: int | None) -> str:
    """The folder of what is thrown away at each start: the first process has the usual one."""
    return f"temp-gpu{instance}" if instance else "temp"


def comfyui_words(instance: int | None, given: Sequence[str], checkout: Path) -> list[str]:
    """ComfyUI arguments that keep a process's temporary files and database apart; they come after the user's."""
    if not instance:
        return []
    base = Path(_value("--base-directory", given) or checkout)
    # ComfyUI puts a folder "temp" into the one it is given.
    words = ["--temp-directory", str(Path(_value("--temp-directory", given) or base) / temp_name(instance))]
    parser = checkout / "comfy" / "cli_args.py"
    if _value("--database-url", given) is None and '"--database-url"' in _text(parser):
        words += ["--database-url", f"sqlite:///{checkout / 'user' / f'comfyui-gpu{instance}.db'}"]
    return words


def _value(name: str, words: Sequence[str]) -> str | None:
    found = None
    for at, word in enumerate(words):
        if word.startswith(f"{name}="):
            found = word.partition("=")[2]
        elif word == name and at + 1 < len(words):
            found = words[at + 1]
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
