"""Folders and names of files: where models, inputs and outputs lie, and who gets which name.

Owns the promise that no two lanes ever write one file. Refuses every path that leads out of its folder.
Knows nothing of images or HTTP.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

MODEL_FOLDERS: Final = (
    "checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models",
    "embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "hypernetworks",
    "photomaker", "classifiers", "model_patches", "audio_encoders",
)  # fmt: skip
MODEL_ENDINGS: Final = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
IMAGE_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ico", ".avif"})
KINDS: Final = ("input", "output", "temp")
PART: Final = ".part-"
"""How names of files that are still being written begin."""


class Outside(ValueError):  # noqa: N818 (where the path leads)
    """The path leads out of its folder."""


class BadName(ValueError):  # noqa: N818 (what the client sent)
    """No file can have this name, or there is no such folder."""


class Files:
    """The data folder of one backend process. Temp is emptied at start, as ComfyUI does."""

    def __init__(self, data: Path, temp: str = "temp") -> None:
        """``temp``: the name of the folder that is emptied; processes that share ``data`` have one each."""
        self.data = data.resolve()
        self._temp = temp
        self._names = threading.Lock()
        for kind in KINDS:
            self.folder(kind).mkdir(parents=True, exist_ok=True)
        for folder in MODEL_FOLDERS:
            (self.data / "models" / folder).mkdir(parents=True, exist_ok=True)

    def empty_temp(self) -> None:
        """Remove what earlier processes left in temp."""
        for entry in self.folder("temp").iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def folder(self, kind: str) -> Path:
        """Folder of ``input``, ``output`` or ``temp``; raises ``BadName`` for any other."""
        if kind not in KINDS:
            raise BadName(f"there is no folder {kind!r}")
        return self.data / (self._temp if kind == "temp" else kind)

    def models(self, folder: str) -> list[str]:
        """Names of the models in one of ``MODEL_FOLDERS``, with ``/`` between subfolder and name, sorted."""
        root = self.data / "models" / folder
        found = [
            Path(where, name).relative_to(root).as_posix()
            for where, _, names in os.walk(root, followlinks=True)
            for name in names
            if Path(name).suffix.lower() in MODEL_ENDINGS
        ]
        return sorted(found)

    def model(self, folder: str, name: str) -> Path:
        """Path of a model; raises ``FileNotFoundError``."""
        path = _within(self.data / "models" / folder, name)
        if not path.is_file():
            raise FileNotFoundError(f"Model in folder '{folder}' with filename '{name}' not found.")
        return path

    def inputs(self) -> list[str]:
        """Names of the images in the input folder, sorted."""
        with os.scandir(self.folder("input")) as entries:
            return sorted(
                entry.name
                for entry in entries
                if Path(entry.name).suffix.lower() in IMAGE_ENDINGS
                and not entry.name.startswith(PART)
                and entry.is_file()
            )

    def annotated(self, name: str, default: str = "input") -> Path:
        """Path of ``name``, ``sub/name`` or ``name [output]`` (ComfyUI ``get_annotated_filepath``).

        Raises ``Outside`` or ``BadName``.
        """
        plain, kind = split_annotation(name)
        return _within(self.folder(kind or default), plain)

    def find(self, filename: str, kind: str, subfolder: str = "") -> Path:
        """Path for ``/view``, whether there is a file or not; raises ``Outside`` or ``BadName``."""
        plain, annotated = split_annotation(filename)
        if not plain or plain[0] == "/" or ".." in plain:
            raise BadName(f"{filename!r} is not a file name")
        folder = _within(self.folder(annotated or kind), subfolder)
        return _within(folder, Path(plain).name)

    def save(
        self, kind: str, prefix: str, ending: str, write: Callable[[Path], None], *, width: int = 0, height: int = 0
    ) -> tuple[str, str]:
        """Write a new ``prefix_00001_.ending`` with the next free number; returns its name and subfolder.

        The name is taken before ``write`` runs (on a path beside it) and appears whole or not at all; if
        ``write`` raises, it is given back. Raises ``Outside`` or ``BadName``.
        """
        if "\0" in prefix:
            raise BadName("a name cannot hold a zero byte")
        subfolder, name = split_prefix(expand(prefix, time.localtime(), width, height))
        folder = _within(self.folder(kind), subfolder)
        folder.mkdir(parents=True, exist_ok=True)
        target = self._take_name(folder, name, ending)
        try:
            _write_beside(target, write)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target.name, subfolder

    def _take_name(self, folder: Path, name: str, ending: str) -> Path:
        with self._names:
            number = next_number(os.listdir(folder), name)  # noqa: PTH208 (names are all that is needed)
            while True:
                target = folder / f"{name}_{number:05}_{ending}"
                try:
                    # O_EXCL: another process may write here too.
                    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                except FileExistsError:
                    number += 1
                    continue
                return target

    def upload(
        self, kind: str, subfolder: str, filename: str, write: Callable[[Path], None],
        *, overwrite: bool, same: Callable[[Path], bool],
    ) -> str:  # fmt: skip
        """Keep an uploaded file; returns its name: ``name (1).png`` if another file has it, unless ``overwrite``.

        ``same`` says whether a file that is there has the uploaded content; then nothing is written.
        Raises ``Outside`` or ``BadName``.
        """
        if not filename or Path(filename).name != filename or filename in {".", ".."} or "\0" in filename:
            raise BadName(f"{filename!r} is not a file name")
        folder = _within(self.folder(kind), subfolder)
        folder.mkdir(parents=True, exist_ok=True)
        stem, ending = os.path.splitext(filename)  # noqa: PTH122 (".png" alone is a stem in both spellings)
        with self._names:
            target, count = folder / filename, 0
            while not overwrite and target.exists():
                if same(target):
                    return target.name
                count += 1
                target = folder / f"{stem} ({count}){ending}"
            _write_beside(target, write)
        return target.name


def split_annotation(name: str) -> tuple[str, str | None]:
    """``"a.png [output]"`` → ``("a.png ", "output")``, as ComfyUI's ``annotated_filepath``, without the space."""
    for kind in KINDS:
        mark = f"[{kind}]"
        if name.endswith(mark):
            return name[: -len(mark)].removesuffix(" "), kind
    return name, None


def expand(prefix: str, now: time.struct_time, width: int, height: int) -> str:
    """``%width%``, ``%height%`` and the parts of the date in a prefix."""
    values = {
        "width": str(width), "height": str(height), "year": str(now.tm_year), "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }  # fmt: skip
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def split_prefix(prefix: str) -> tuple[str, str]:
    """``"a/b/name"`` → ``("a/b", "name")``."""
    normal = os.path.normpath(prefix)
    return os.path.dirname(normal), os.path.basename(normal)  # noqa: PTH119, PTH120 (text, no file)


def next_number(names: list[str], name: str) -> int:
    """One more than the highest number among ``name_NNNNN_…`` (ComfyUI ``get_save_image_path``)."""
    highest = 0
    mark = f"{name}_"
    for each in names:
        if each.startswith(mark):
            digits = each[len(mark) :].split("_")[0]
            if digits.isascii() and digits.isdigit():
                highest = max(highest, int(digits))
    return highest + 1


def _within(folder: Path, below: str) -> Path:
    """``folder/below``, which must not lead out of it."""
    if "\0" in below:
        raise BadName("a name cannot hold a zero byte")
    path = Path(os.path.abspath(folder / below))  # noqa: PTH100 (links in the folder are the owner's wish)
    if path != folder and folder not in path.parents:
        raise Outside(f"{below!r} leads out of its folder")
    return path


def _write_beside(target: Path, write: Callable[[Path], None]) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=PART, suffix=target.suffix)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o644)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
