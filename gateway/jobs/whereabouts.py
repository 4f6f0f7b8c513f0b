"""On which GPU the file was made that ``/view`` asks for.

Pure. Owns the newest so many files of the jobs it is told of. Must never know whether they are still there.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from gateway.jobs.record import Record

MOST: Final = 50_000
"""Files remembered; the oldest are forgotten first."""

File = tuple[str, str, str]
"""Type, subfolder and name."""


class Whereabouts:
    """File to GPU."""

    def __init__(self, most: int = MOST) -> None:
        self._gpu: dict[File, int] = {}
        self._most = most

    def note(self, record: Record) -> None:
        """Remember the files of a job; later ones of the same name take the place of earlier ones."""
        if record.gpu is None or not record.outputs:
            return
        for file in files_of(record.outputs):
            self._gpu.pop(file, None)
            self._gpu[file] = record.gpu
        while len(self._gpu) > self._most:
            del self._gpu[next(iter(self._gpu))]

    def gpu(self, target: bytes) -> int | None:
        """The GPU that made what this target of ``/view`` names; ``None`` when that is not known."""
        query = parse_qs(target.partition(b"?")[2].decode("latin-1"), encoding="utf-8")
        name, subfolder = query.get("filename", [""])[-1], query.get("subfolder", [""])[-1]
        return self._gpu.get((query.get("type", ["output"])[-1], subfolder, name))


def files_of(outputs: Mapping[str, Any]) -> Iterator[File]:
    """Every file that ComfyUI's outputs by node name."""
    for output in outputs.values():
        for items in output.values() if isinstance(output, dict) else ():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict) and isinstance(item.get("filename"), str):
                    yield str(item.get("type", "output")), str(item.get("subfolder", "")), item["filename"]
