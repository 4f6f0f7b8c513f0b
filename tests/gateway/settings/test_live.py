"""What a reload may change, and what it may not."""

from dataclasses import fields, replace
from typing import Any

import pytest

from gateway.config import Backend, Config, Rate
from gateway.settings.live import LIVE, is_live, merge
from gateway.settings.tables import SECTIONS

SETTINGS = [
    (section, field.name) for section in SECTIONS for field in fields(getattr(Config(), section))
]


def other(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case Rate():
            return replace(value, burst=value.burst + 1)
        case tuple():
            return (*value, "x")
    raise AssertionError(value)


def changed(config: Config, table: str, key: str) -> Config:
    section = getattr(config, table)
    return replace(config, **{table: replace(section, **{key: other(getattr(section, key))})})


@pytest.mark.parametrize(("table", "key"), SETTINGS)
def test_each_setting_is_taken_over_or_named(table: str, key: str):
    """A live one holds from now on; any other keeps its value and is named; nothing else is touched."""
    running = Config()
    wanted = changed(running, table, key)
    name = f"[{table}] {key}"
    outcome = merge(running, wanted)
    if is_live(table, key):
        assert outcome == (wanted, [name], [])
    else:
        assert outcome == (running, [], [name])


def test_what_waits_for_a_start_is_named_again_at_the_next_reload():
    """It differs from what runs for as long as it is not started anew."""
    running = replace(Config(), backend=Backend(url="http://127.0.0.1:1"))
    wanted = changed(changed(changed(running, "backend", "url"), "limits", "body"), "limits", "pool_wait")
    first = merge(running, wanted)
    assert (first.applied, first.waiting) == (["[limits] body", "[limits] pool_wait"], ["[backend] url"])
    assert first.config == replace(running, limits=wanted.limits)
    assert merge(first.config, wanted) == (first.config, [], ["[backend] url"])


def test_the_list_names_settings_that_exist():
    """A key that is renamed does not stay in the list of live ones."""
    known = {table: {key for each, key in SETTINGS if each == table} for table, _ in SETTINGS}
    assert set(LIVE) <= set(known)
    assert [(table, key) for table, keys in LIVE.items() for key in keys - {"*"} if key not in known[table]] == []


def test_further_backends_change_what_the_first_one_can():
    """Weight and drain of each by itself; where there are more or fewer of them, none of it."""
    running = replace(Config(), further=(Backend(url="http://a:1"), Backend(url="http://b:1")))
    heavier = replace(running.further[1], weight=2.0, drain=True)
    found = merge(running, replace(running, further=(Backend(url="http://c:1"), heavier)))
    assert found.applied == ["[[backend]] 3 weight", "[[backend]] 3 drain"]
    assert found.waiting == ["[[backend]] 2 url"]
    assert found.config.further == (running.further[0], heavier)
    fewer = merge(running, replace(running, further=(heavier,)))
    assert (fewer.config, fewer.applied, fewer.waiting) == (running, [], ["[[backend]] their number"])
