"""``comfy-gateway check``: what ``nginx -t`` is to nginx.

Pure but for the reading of the file and of those it names. Prints nothing: the command line does.
"""

from pathlib import Path

from gateway.auth.certificate import CertificateError, load
from gateway.auth.guard import open_without_keys
from gateway.auth.keys import KeyFile, KeyFileError
from gateway.config import Config
from gateway.config_load import Change, Problem, read, unchanged


def check(path: str | Path, change: Change = unchanged) -> list[Problem]:
    """Everything to say about a configuration file, by line; ``change`` as for ``read``. Empty: nothing."""
    config, problems = read(path, change)
    return problems if config is None else [*problems, *(Problem(str(path), 0, "", said) for said in beside(config))]


def beside(config: Config) -> list[str]:
    """What keeps the gateway from starting in the files that a configuration names: keys and certificate."""
    said = []
    try:
        if (problem := open_without_keys(config, KeyFile(Path(config.auth.folder)).load())) is not None:
            said.append(problem)
    except KeyFileError as error:
        said.append(str(error))
    if config.tls.certificate:
        try:
            load(config.tls)
        except CertificateError as error:
            said.append(str(error))
    return said


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
