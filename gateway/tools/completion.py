"""Completion for shells, made from the arguments themselves.

Pure.
"""

import argparse
from collections.abc import Iterator


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script for ``bash`` or ``zsh`` that completes commands and options."""
    cases = "\n".join(
        f"    {name}) words={' '.join(_words(each))!r} ;;" for name, each in sorted(_commands(parser).items())
    )
    first = " ".join([*sorted(_commands(parser)), *_options(parser)])
    load = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{load}_comfy_gateway() {{
  local words={first!r}
  if [ "$COMP_CWORD" -gt 1 ]; then
    words=""
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _comfy_gateway comfy-gateway"""


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 (argparse has no public way to read what was added)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            found.update(action.choices)
    return found


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        yield from (option for option in action.option_strings if option.startswith("--"))


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from sorted(_commands(parser))
    yield from _options(parser)
    for action in parser._actions:  # noqa: SLF001
        if action.choices and not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            yield from map(str, action.choices)
