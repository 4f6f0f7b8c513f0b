"""``comfy-gateway check``: what ``nginx -t`` is to nginx.

Pure but for the reading of the one file. Prints nothing: the command line does.
"""

from pathlib import Path

from gateway.config_load import Change, Problem, read, unchanged


def check(path: str | Path, change: Change = unchanged) -> list[Problem]:
    """Everything to say about a configuration file, by line; ``change`` as for ``read``. Empty: nothing."""
    return read(path, change)[1]


def failed(problems: list[Problem]) -> bool:
    """Whether one of them keeps the gateway from starting; warnings do not."""
    return any(not problem.warning for problem in problems)


def render(path: str | Path, problems: list[Problem]) -> str:
    """The report for people: one line per problem, and a last one with the verdict."""
    lines = [str(problem) for problem in problems]
    errors = sum(not problem.warning for problem in problems)
    if errors:
        lines.append(f"{path}: {errors} error{'s' * (errors > 1)}; the gateway will not start with it")
    else:
        lines.append(f"{path}: ok")
    return "\n".join(lines)
