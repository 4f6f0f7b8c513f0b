"""``config.toml`` and ``docs/configuration.md``, written from the dataclasses and the sentences in them.

Pure but for the last lines: ``python -m gateway.settings.document`` in the root of a checkout writes both files anew.
"""

import ast
import inspect
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from gateway.config import Config, Rate
from gateway.settings.live import is_live
from gateway.settings.tables import SECTIONS
from gateway.settings.units import show_rate, show_seconds, show_size
from gateway.spec import Spec

NODELAY = "The whole burst passes at once; false: everything above the rate is spaced (nginx without nodelay)."
"""Why of the key ``nodelay`` of a bucket, which is how the file spells ``delay = None``."""

_UNITS = (
    'Sizes are bytes or such as "64KB", "100MB" (by 1024, as nginx counts); durations are seconds or such as "500ms", '
    '"10m"; rates are requests a second or such as "10r/s", "600r/m".'
)


def render_toml() -> str:
    """The complete file: every key with its default and one line why; it reads back as ``Config()``."""
    blocks = [
        "# Every setting of comfy-gateway with its default. A file may leave out what it does not change;",
        "# `comfy-gateway check FILE` names every mistake in it. Written by `python -m gateway.settings.document`.",
        "# Sizes: bytes, or such as 64KB, 100MB (by 1024, as nginx counts).",
        "# Durations: seconds, or such as 500ms, 10m. Rates: requests a second, or such as 10r/s, 600r/m.",
    ]
    for section, kind, default in _sections():
        blocks += ["", f"# {_first_sentence(kind)}", f"[{section}]"]
        for name, spec, value in _settings(kind, default):
            blocks += [f"# {reason(kind.__name__, name)}", f"{name} = {_show(spec, value)}"]
        for name, bucket in _buckets(kind, default):
            blocks += ["", f"# {reason(kind.__name__, name)}", f"[{section}.{name}]"]
            blocks += _bucket_lines(bucket, explained=name == "submit")
    return "\n".join(blocks) + "\n"


def render_markdown() -> str:
    """The reference for readers: one table per section."""
    lines = [
        "# Configuration",
        "",
        "`comfy-gateway up` reads `config.toml`; what a file leaves out keeps the default. "
        "`comfy-gateway check [FILE]` names every mistake with its line, as `nginx -t` does. " + _UNITS,
        "",
        "A reload (SIGHUP) reads the file again; each section says what of it is applied then.",
        "",
        "This page is written by `python -m gateway.settings.document` from `gateway/config.py`.",
    ]
    for section, kind, default in _sections():
        lines += ["", f"## [{section}]", "", f"{_first_sentence(kind)} {_when(section, kind)}", ""]
        lines += ["| Key | Default | Accepts | Why |", "|---|---|---|---|"]
        for name, spec, value in _settings(kind, default):
            lines += [_row(name, _show(spec, value), _accepts(spec, value), reason(kind.__name__, name))]
        if buckets := _buckets(kind, default):
            lines += ["", *_bucket_tables(section, kind, buckets)]
    return "\n".join(lines) + "\n"


@cache
def reasons() -> dict[tuple[str, str], str]:
    """The sentence below each field of a section, by class and field."""
    found = {}
    sources = {inspect.getmodule(kind): None for kind in (Rate, *(kind for _, kind, _ in _sections()))}
    for node in (node for module in sources if module for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            for item, after in zip(node.body, node.body[1:], strict=False):
                match item, after:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        found[node.name, name] = " ".join(text.split())
    return found


def reason(kind: str, name: str) -> str:
    """Why one would touch a setting; ``KeyError`` when the field has no sentence below it."""
    return reasons()[kind, name]


def _sections() -> list[tuple[str, type, Any]]:
    hints = get_type_hints(Config, include_extras=True)
    config = Config()
    return [(name, hints[name], getattr(config, name)) for name in SECTIONS]


def _settings(kind: type, default: Any) -> list[tuple[str, Spec, Any]]:
    """Fields of a section that are single values or arrays of them."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if not is_dataclass(hint):
            inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
            found.append((name, get_args(inner)[1], getattr(default, name)))
    return found


def _buckets(kind: type, default: Any) -> list[tuple[str, Rate]]:
    return [(name, getattr(default, name)) for name, hint in get_type_hints(kind).items() if hint is Rate]


def _bucket_keys(bucket: Rate) -> list[tuple[str, str, str, str]]:
    """Key, value, what it accepts and why; ``delay`` in its spelling ``nodelay`` where that is the default."""
    rows = []
    for name, spec, value in _settings(Rate, bucket):
        why = reason("Rate", name)
        if name == "delay":
            rows.append(("nodelay", "true" if value is None else "false", "true, false", NODELAY))
            continue
        rows.append((name, _show(spec, value), _accepts(spec, value), why))
    return rows


def _bucket_lines(bucket: Rate, *, explained: bool) -> list[str]:
    lines = []
    for key, value, _, why in _bucket_keys(bucket):
        lines += [f"# {why}"] * explained + [f"{key} = {value}"]
        if key == "nodelay" and explained:
            lines += [f"# {reason('Rate', 'delay')}", "# delay = 8"]
    return lines


def _bucket_tables(section: str, kind: type, buckets: list[tuple[str, Rate]]) -> list[str]:
    first = buckets[0][1]
    lines = [f"Buckets are tables of their own, `[{section}.NAME]`, with these keys:", ""]
    lines += ["| Key | Accepts | Why |", "|---|---|---|"]
    for key, _, accepts, why in _bucket_keys(first):
        lines += [_row(key, None, accepts, why)]
        if key == "nodelay":
            spec = next(spec for name, spec, _ in _settings(Rate, first) if name == "delay")
            lines += [_row("delay", None, _accepts(spec, 0), reason("Rate", "delay"))]
    keys = [key for key, *_ in _bucket_keys(first)]
    lines += ["", f"| Bucket | {' | '.join(keys)} | What it holds |", "|---" * (len(keys) + 2) + "|"]
    for name, bucket in buckets:
        values = " | ".join(f"`{value}`" for _, value, _, _ in _bucket_keys(bucket))
        lines += [f"| `{name}` | {values} | {reason(kind.__name__, name)} |"]
    return lines


def _when(section: str, kind: type) -> str:
    """Whether a reload applies the settings of a section."""
    names = [field.name for field in fields(kind)]
    live = [name for name in names if is_live(section, name)]
    if len(live) == len(names):
        return "A reload applies all of it."
    if not live:
        return "Read at the start only."
    return f"A reload applies {', '.join(f'`{name}`' for name in live)}; the rest is read at the start only."


def _row(key: str, default: str | None, accepts: str, why: str) -> str:
    cells = [f"`{key}`", *([] if default is None else [f"`{default}`"]), accepts, why]
    return "| " + " | ".join(cells) + " |"


def _accepts(spec: Spec, value: object) -> str:
    """The bounds in words."""
    low, high = spec.low, spec.high
    text = {
        "flag": "true, false",
        "text": "text",
        "host": "address or name",
        "url": "URL",
        "network": "address or network",
        "count": f"{low:g} to {int(high)}",
        "size": f"size, {show_size(int(low))} to {show_size(int(high))}",
        "seconds": f"duration, {show_seconds(low)} to {show_seconds(high)}",
        "rate": f"rate, {low:g} to {int(high)} a second",
        "choice": ", ".join(f'`"{choice}"`' for choice in spec.choices),
    }[spec.form]
    return f"array of: {text}" if isinstance(value, tuple) else text


def _show(spec: Spec, value: Any) -> str:
    """A value as the file spells it."""
    if isinstance(value, tuple):
        return f"[{', '.join(_show(spec, item) for item in value)}]"
    match spec.form:
        case "flag":
            return "true" if value else "false"
        case "count":
            return str(value)
        case "size":
            return f'"{show_size(value)}"'
        case "seconds":
            return f'"{show_seconds(value)}"'
        case "rate":
            return f'"{show_rate(value)}"'
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _first_sentence(kind: type) -> str:
    """The head of a section's docstring, without its own name before the colon."""
    _, _, text = inspect.getdoc(kind).partition(": ")  # type: ignore[union-attr]  # every section has one
    text = " ".join(text.split()).replace("``", "")
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    Path("config.toml").write_text(render_toml(), encoding="utf-8")
    Path("docs/configuration.md").write_text(render_markdown(), encoding="utf-8")
