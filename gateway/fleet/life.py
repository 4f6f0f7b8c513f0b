"""Lives of processes: which one a process id means now, for ids are used again.

Owns the reading of ``/proc``. Must never start or end anything.
"""

from functools import cache
from pathlib import Path


def name_of(pid: int) -> str:
    """A name that no other life of a process on this machine has; empty when it is gone.

    On systems without ``/proc`` the process id alone, which is the best there is.
    """
    if not Path("/proc/self/stat").exists():
        return str(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # proc(5): after the name in parentheses, which may hold anything, come state (3) … starttime (22).
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else f"{pid}-{fields[19]}-{_machine()}"


@cache
def _machine() -> str:
    """This time that the machine is on."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return ""
