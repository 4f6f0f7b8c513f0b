"""Builds the package; with ``COMFY_GATEWAY_COMPILE=1`` the data path is compiled by mypyc.

All else is in pyproject.toml. The compiled modules are the very same files: nothing is written twice, and without the
variable, without a compiler or on another interpreter than CPython the package is complete as it is.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

COMPILED = (
    "gateway/wire/*.py",
    "gateway/cache/*.py",
    "gateway/auth/gate.py",
    "gateway/auth/origin.py",
    "gateway/errors.py",
    "gateway/forwarded.py",
    "gateway/handover.py",
    "gateway/observe/access.py",
    "gateway/observe/metrics.py",
    "gateway/proxy.py",
    "gateway/ratelimit.py",
    "gateway/request.py",
    "gateway/service.py",
)
"""What a small request passes through, and what its classes inherit from."""

PLAIN = {
    "gateway/wire/hearing.py",  # mypyc knows no asynchronous generators
}

REQUIRES = ["mypy>=2.4", "httptools>=0.6.4", "prometheus-client>=0.21", "uvloop>=0.21"]
"""mypyc, and what the compiled modules import, so that it knows their types."""


def compiler_missing() -> str:
    """Why nothing can be compiled here; empty when it can."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(command) is None:
        return f"there is no C compiler ({command})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"Python's headers are missing ({header})"


def modules(root: Path) -> list[str]:
    """The files that are compiled."""
    found = {str(file.relative_to(root)) for pattern in COMPILED for file in root.glob(pattern)} - PLAIN
    return sorted(file for file in found if not file.endswith("__init__.py"))


def main() -> None:
    """Build."""
    if os.environ.get("COMFY_GATEWAY_COMPILE") != "1":
        setup()
        return
    if reason := compiler_missing():
        sys.exit(
            f"comfy-gateway: COMFY_GATEWAY_COMPILE=1, but {reason}. Install it (Debian: gcc and python3-dev), or build"
            " without the variable: the gateway then is complete, too, and takes more CPU per request."
        )
    if any(argument.endswith("egg_info") or argument == "dist_info" for argument in sys.argv):
        setup(setup_requires=REQUIRES)
        return
    from mypyc.build import mypycify  # noqa: PLC0415 (only a build that compiles needs it)

    # What is only imported from them is looked into, but not judged: its own libraries may not be there.
    files = ["--follow-imports=silent", *modules(Path())]
    setup(ext_modules=mypycify(files, opt_level=os.environ.get("MYPYC_OPT_LEVEL", "2"), debug_level="0"))


if __name__ == "__main__":
    main()
