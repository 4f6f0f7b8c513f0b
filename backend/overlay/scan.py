"""Looks through ``custom_nodes`` for code that will meet other lanes: device pins, seeds, shared caches, own numbering.

Owns which files are read and how the findings are told; what counts as a finding is in ``scan_rules``. Reads files,
runs none of them, and never fails: what cannot be read is counted and named.
"""

import ast
import importlib
import logging
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.overlay.scan_rules import KINDS, Finding, findings

log = logging.getLogger("backend.overlay.scan")

SHOWN: Final = 20
MAX_BYTES: Final = 1 << 20
"""Files beyond this are data written as Python."""
MAX_SECONDS: Final = 20.0
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "venv", "site-packages", "tests", "test"})


@dataclass(frozen=True)
class Report:
    """What one look found: findings in order of weight, how much was read, and what could not be."""

    packs: int
    files: int
    seconds: float
    findings: tuple[Finding, ...]
    unread: tuple[str, ...] = ()
    """``pack/file.py: reason`` for each file that is no Python or cannot be opened."""
    left_out: int = 0
    """Files not looked at because the time was up."""

    def lines(self, shown: int = SHOWN) -> list[str]:
        """The report for the log: a summary, then up to ``shown`` findings."""
        total = len(self.findings)
        amount = f"{self.packs} packs, {self.files} files in {self.seconds:.1f} s"
        if not total:
            head = [f"compatibility scan of custom_nodes: {amount}: none found"]
        else:
            counts = Counter(finding.kind for finding in self.findings)
            kinds = ", ".join(f"{counts[kind]} {KINDS[kind].title}" for kind in KINDS if counts[kind])
            head = [f"compatibility scan of custom_nodes: {amount}: {total} found ({kinds})"]
            head += [f"  {finding}" for finding in self.findings[:shown]]
            if total > shown:
                head.append(f"  … and {total - shown} more")
            head += [f"  {KINDS[kind].title}: {KINDS[kind].advice}" for kind in KINDS if counts[kind]]
        head += [f"  not read: {reason}" for reason in self.unread[:shown]]
        if self.left_out:
            head.append(f"  {self.left_out} files were not looked at: {MAX_SECONDS:.0f} s were up")
        return head


def scan(
    folders: Sequence[Path],
    allowed: Collection[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    limit: float = MAX_SECONDS,
) -> Report:
    """Look through each ``custom_nodes`` folder, for ``limit`` seconds of ``clock`` at most.

    ``allowed`` names the packs that are loaded; where it is ``None``, all are.
    """
    began = clock()
    packs = files = left_out = 0
    found: list[Finding] = []
    unread: list[str] = []
    for root, pack in ((folder, pack) for folder in folders for pack in _packs(folder, allowed)):
        packs += 1
        for file in _files(pack):
            if clock() - began > limit:
                left_out += 1
                continue
            files += 1
            name = file.relative_to(root).as_posix()
            try:
                found += look(file.read_bytes(), name)
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
                unread.append(f"{name}: {_reason(error)}")
    order = list(KINDS)
    found.sort(key=lambda finding: (order.index(finding.kind), finding.path.lower(), finding.line))
    return Report(packs, files, clock() - began, tuple(found), tuple(unread), left_out)


def look(source: bytes, name: str) -> list[Finding]:
    """The findings of one file; raises ``SyntaxError`` or ``ValueError`` where it is no Python."""
    if len(source) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    with warnings.catch_warnings():
        # Wrong escapes in other people's strings are not ours to report.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    return findings(tree, name)


def tell(report: Report) -> None:
    """Write the report to the log: as a warning if there is anything to be done about it."""
    level = logging.WARNING if any(KINDS[finding.kind].matters for finding in report.findings) else logging.INFO
    for line in report.lines():
        log.log(level, "%s", line)


def in_background(folders: Sequence[Path], allowed: Collection[str] | None = None) -> threading.Thread:
    """Scan and tell in a thread of its own, so that the start does not wait for it."""
    thread = threading.Thread(target=lambda: tell(scan(folders, allowed)), name="compatibility scan", daemon=True)
    thread.start()
    return thread


def loaded_from() -> tuple[list[Path], Collection[str] | None]:
    """Where the ComfyUI in this process takes custom nodes from, and which packs alone its arguments allow."""
    args = importlib.import_module("comfy.cli_args").args
    folders = importlib.import_module("folder_paths").get_folder_paths("custom_nodes")
    allowed = set(getattr(args, "whitelist_custom_nodes", ())) if args.disable_all_custom_nodes else None
    return [Path(folder) for folder in folders], allowed


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"no Python of this version (line {error.lineno})"
    if isinstance(error, (RecursionError, MemoryError)):
        return "nested too deeply"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _packs(folder: Path, allowed: Collection[str] | None) -> Iterator[Path]:
    """What ComfyUI would load from ``folder``: sub-folders and single files, but not disabled ones."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name.lower())
    except OSError:
        return
    for entry in entries:
        name = entry.name
        if name.endswith(".disabled") or name.startswith(".") or name == "__pycache__":
            continue
        if allowed is not None and name not in allowed and entry.stem not in allowed:
            continue
        if entry.is_dir() or entry.suffix == ".py":
            yield entry


def _files(pack: Path) -> Iterator[Path]:
    if pack.is_file():
        yield pack
        return
    for folder, subfolders, names in os.walk(pack):
        subfolders[:] = sorted(
            name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def main(argv: Sequence[str]) -> int:
    """``python -m backend.overlay.scan FOLDER``: what is found in a ComfyUI's custom nodes, if anything."""
    report = scan([Path(argv[0]) / "custom_nodes"])
    if report.findings or report.unread or report.left_out:
        sys.stdout.write("\n".join(report.lines()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
