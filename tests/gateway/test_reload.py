"""Settings read again: a bad file does nothing, and new limits do to traffic nothing but what they say."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config import Config, Rate
from gateway.config_load import load
from gateway.ratelimit import Limiter
from gateway.reload import reread
from gateway.request import Kind
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_load import Load, echo_anything
from tests.doubles.http_stack import Stack, stack, stop_the_clock
from tests.doubles.wait import until


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[limits]\nbdy = 1\n", ":2: [limits] bdy: unknown key"),
        ("[limits\n", ":1: syntax"),
        ('[rate.submit]\nrate = "fast"\n', ":2: [rate.submit] rate"),
        (None, "cannot be read"),
    ],
)
def test_a_file_with_a_mistake_changes_nothing_and_says_why(text: str | None, told: str, tmp_path: Path, caplog):
    """The log has each mistake with its line, as at a start, and that nothing was changed."""
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.INFO, "gateway.reload"):
        outcome = reread(Config(), lambda: load(file))
    assert outcome.config is None
    assert any(told in line for line in outcome.errors)
    assert told in caplog.text
    assert "not reloaded: the settings stay as they are" in caplog.text


def test_an_unchanged_file_says_so(tmp_path: Path, caplog):
    """A reload is answered in the log, whatever it came to."""
    file = tmp_path / "config.toml"
    file.write_text("", encoding="utf-8")
    with caplog.at_level(logging.INFO, "gateway.reload"):
        assert reread(Config(), lambda: load(file)).config == Config()
    assert "reloaded: the settings stay as they are" in caplog.text


def config_with(**changes: object) -> Config:
    return replace(Config(), rate=replace(Config().rate, **changes))


def allowed(limiter: Limiter, asks: int, now: float) -> int:
    return sum(limiter.check(0, Kind.SUBMIT, "1.2.3.4", now).allowed for _ in range(asks))


def test_a_used_bucket_stays_used():
    """A reload is no way to another burst; a raised burst counts from what was used already."""
    limiter = Limiter(config_with(submit=Rate(1, 20)).rate, 1)
    assert allowed(limiter, 60, 100.0) == 21
    limiter.apply(config_with(submit=Rate(1, 20), read=Rate(1, 1)))
    assert allowed(limiter, 60, 100.0) == 0
    limiter.apply(config_with(submit=Rate(1, 30)))
    assert allowed(limiter, 60, 100.0) == 10
    limiter.apply(config_with(submit=Rate(1, 5)))
    assert allowed(limiter, 60, 110.0) == 0
    assert allowed(limiter, 60, 126.0) == 1


def test_limits_can_be_switched_off_and_on():
    """Off is off at once; on again they begin afresh; another scope has buckets of its own."""
    limiter = Limiter(config_with(submit=Rate(1, 0)).rate, 1)
    assert allowed(limiter, 5, 100.0) == 1
    limiter.apply(config_with(enabled=False))
    assert allowed(limiter, 5, 100.0) == 5
    limiter.apply(config_with(submit=Rate(1, 0)))
    assert allowed(limiter, 5, 100.0) == 1
    limiter.apply(config_with(scope="all", all=Rate(1, 1)))
    assert allowed(limiter, 5, 100.0) == 2


def test_a_smaller_table_forgets_who_was_away_longest():
    """``max_keys`` holds at once, and what was forgotten is counted."""
    limiter = Limiter(config_with(submit=Rate(1, 0)).rate, 1)
    for number in range(10):
        limiter.check(0, Kind.SUBMIT, f"10.0.0.{number}", 100.0)
    limiter.apply(config_with(submit=Rate(1, 0), max_keys=20))
    assert (limiter.size, limiter.evictions) == (4, 6)
    assert not limiter.check(0, Kind.SUBMIT, "10.0.0.9", 100.0).allowed


async def reloaded(made: Stack, **changes: dict[str, object]) -> None:
    """The same settings with a few others, as ``App.reload`` hands them on."""
    sections = {name: replace(getattr(made.config, name), **values) for name, values in changes.items()}
    made.config = replace(made.config, **sections)
    made.server.apply(made.config)
    made.proxy.limiter.apply(made.config)


async def test_shorter_time_outs_hold_from_the_next_wait_on():
    """Also when they are shorter than what the clock was made for; what waits already keeps its time."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.reply(b"ok")
        await peer.request()
        await peer.gone()

    async with stack(script, timeouts={"read": 600.0}) as made, made.client() as client:
        clock = stop_the_clock(made)
        await client.send(request("/"))
        await until(lambda: made.backend.seen)
        await reloaded(made, timeouts={"read": 1.0})
        clock.advance(2.0)
        go.set()
        assert (await client.answer()).status == 200
        await client.send(request("/"))
        await until(lambda: len(made.backend.seen) == 2)
        clock.advance(2.0)
        assert (await client.answer()).status == 504


async def test_a_larger_pool_takes_those_that_wait():
    """Nobody waits for what has become free by a reload."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.reply(b"ok")

    async with stack(script, limits={"pool_connections": 1}) as made, made.client() as a, made.client() as b:
        await a.send(request("/a"))
        await b.send(request("/b"))
        await until(lambda: made.proxy.pools[0].waiting == 1)
        await reloaded(made, limits={"pool_connections": 2})
        await until(lambda: len(made.backend.seen) == 2)
        go.set()
        assert [(await each.answer()).status for each in (a, b)] == [200, 200]


async def test_the_access_log_and_trust_change_at_once(caplog):
    """For connections made afterwards, and for every line."""
    with caplog.at_level(logging.INFO, "gateway.access"):
        async with stack(log={"access": False}) as made:
            async with made.client() as client:
                await client.get("/quiet", "X-Forwarded-For: 6.6.6.6")
            await reloaded(made, log={"access": True}, forwarded={"trusted_proxies": ("127.0.0.0/8",)})
            async with made.client() as client:
                await client.get("/told", "X-Forwarded-For: 6.6.6.6")
            assert [seen.all("x-real-ip") for seen in made.backend.seen] == [[b"127.0.0.1"], [b"6.6.6.6"]]
    assert "/quiet" not in caplog.text
    assert "/told" in caplog.text


async def test_reloading_under_load_loses_nothing():
    """Requests, uploads and bridges go on over twenty reloads, each with other limits: not one failure."""
    async with stack(echo_anything) as made:
        load = Load(made)

        async def reloads() -> None:
            for number in range(20):
                before = dict(load.done)
                await reloaded(
                    made,
                    limits={"pool_connections": 50 + number, "body": 1_000_000 + number, "headers": 100 + number},
                    timeouts={"read": 100.0 + number, "client_idle": 50.0 + number},
                    rate={"read": Rate(1e5 + number, 1_000_000)},
                )
                await until(lambda: all(load.done[name] > before[name] for name in before))  # noqa: B023 (awaited)
            assert made.metrics.bridges_open == 3
            load.over.set()

        async with asyncio.TaskGroup() as tasks:
            load.start(tasks)
            tasks.create_task(reloads())
        assert {status for _, _, status in made.metrics._requests} == {200, 101}
        assert made.proxy.pools[0].max_fields == 119
