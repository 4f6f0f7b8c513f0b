"""config.toml and its reference page say what the dataclasses say."""

import re
import tomllib
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import pytest

from gateway.config import Config, Rate
from gateway.config_load import FROM_NGINX, parse
from gateway.settings.document import reason, render_markdown, render_toml
from gateway.settings.tables import SECTIONS

ROOT = Path(__file__).parents[3]
REWRITE = "run: python -m gateway.settings.document"


def settings(kind: type, prefix: str = "") -> list[str]:
    """Every setting of the dataclasses as table.key, ``delay`` in its spelling in the file."""
    found = []
    for name, hint in get_type_hints(kind).items():
        if name == "further":
            continue  # the same keys once more
        if is_dataclass(hint):
            found += settings(hint, f"{prefix}{name}.")  # type: ignore[arg-type]  # the class itself
        else:
            found.append(prefix + ("nodelay" if kind is Rate and name == "delay" else name))
    return found


def keys(table: dict[str, object], prefix: str = "") -> list[str]:
    """Every key of a document as table.key."""
    found = []
    for name, value in table.items():
        found += keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found


def test_file_is_complete() -> None:
    """config.toml has every setting of the dataclasses and no other."""
    assert sorted(keys(tomllib.loads((ROOT / "config.toml").read_text()))) == sorted(settings(Config))


def test_file_holds_the_defaults() -> None:
    """config.toml reads as the default config, and there is nothing to say about it."""
    assert parse((ROOT / "config.toml").read_text()) == (Config(), [])


def test_file_explains_every_key() -> None:
    """Above each key stands why; the keys of later buckets are explained in the first."""
    lines = (ROOT / "config.toml").read_text().splitlines()
    found = [(before, line.split()[0]) for before, line in pairwise(lines) if " = " in line and line[0] != "#"]
    bare = {key for before, key in found if not before.startswith("# ")}
    assert bare == {"rate", "burst", "nodelay", "refuse"}


def test_file_is_as_written() -> None:
    """config.toml is exactly what is written from the dataclasses."""
    assert (ROOT / "config.toml").read_text() == render_toml(), REWRITE


def test_page_is_as_written() -> None:
    """docs/configuration.md is exactly what is written from the dataclasses."""
    assert (ROOT / "docs/configuration.md").read_text() == render_markdown(), REWRITE


@pytest.mark.parametrize("section", [each for each in fields(Config) if each.name in SECTIONS], ids=lambda f: f.name)
def test_every_setting_has_a_reason(section: object) -> None:
    """Each field of each section has one sentence on one line below it, and it stands on the page."""
    kind = get_type_hints(Config)[section.name]  # type: ignore[attr-defined]  # a dataclass field
    page = (ROOT / "docs/configuration.md").read_text()
    for owner in {kind, Rate} if section.name == "rate" else {kind}:  # type: ignore[attr-defined]
        for field in fields(owner):
            why = reason(owner.__name__, field.name)
            assert why.endswith(".")
            assert len(why) < 120
            assert why in page


def test_migration_page_names_every_directive() -> None:
    """docs/migrating-from-nginx.md speaks of every directive that an unknown key is recognised as."""
    page = (ROOT / "docs/migrating-from-nginx.md").read_text()
    assert [name for name in FROM_NGINX if name not in page] == []


def test_migration_page_names_real_keys() -> None:
    """Every TOML block of that page, and every key it names, is accepted."""
    page = (ROOT / "docs/migrating-from-nginx.md").read_text()
    blocks = re.findall(r"(?m)(?:^    (?:\[|\w+ = ).*\n|^\n(?=    ))+", page)
    assert any("[rate.submit]" in block for block in blocks)
    for block in blocks:
        assert parse(re.sub(r"(?m)^    ", "", block))[1] == []
    for section, key in re.findall(r"`\[(\w+)\] (\w+)", page):
        assert f"{section}.{key}" in settings(Config)
