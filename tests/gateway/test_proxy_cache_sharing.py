"""Answers that many ask for at once: made once, and nobody's leaving or failing is another's."""

import asyncio
import gzip

from tests.doubles.cached_files import LIST, SCRIPT, cached, together
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack
from tests.doubles.wait import until


async def test_many_ask_and_the_backend_works_twice():
    """The first request is on its way when the others come: these share the next one."""
    async with cached(open_gate=False) as files:
        answers = await together(files, 20, "/api/object_info")
        assert [got.body for got in answers] == [LIST] * 20
        assert len(files.seen) == 2
        assert files.outcomes == {"fetched": 2, "shared": 18}


async def test_who_asks_after_a_change_sees_it():
    """A request never gets an answer that was begun before it came: what changed in between would not show."""
    async with cached(open_gate=False) as files:
        early = asyncio.create_task(files.get("/object_info"))
        await until(lambda: len(files.seen) == 1)
        late = [asyncio.create_task(files.get("/object_info", "Cache-Control: no-cache")) for _ in range(3)]
        await until(lambda: files.waiting() == 4)
        files.listing = b'{"new model": 1}'
        files.gate.set()
        await early
        assert {got.body for got in await asyncio.gather(*late)} == {b'{"new model": 1}'}
        assert len(files.seen) == 2


async def test_a_listing_is_asked_for_each_time():
    """A plain ComfyUI says nothing to ask by: nothing older than the request itself is given out."""
    async with cached() as files:
        first = await files.get("/object_info")
        files.listing = b"{}"
        second = await files.get("/object_info")
        assert (first.body, second.body) == (LIST, b"{}")
        assert first.all("cache-control") == [b"no-cache"]


async def test_a_listing_has_a_name_and_a_compressed_form():
    """The bytes name it: who has them gets a 304, another port or client the gzip that was made once."""
    async with cached() as files:
        first = await files.get("/object_info", "Accept-Encoding: gzip")
        assert gzip.decompress(first.body) == LIST
        etag = first.all("etag")[0].decode()
        again = await files.get("/object_info", f"If-None-Match: {etag}", gpu=1)
        assert (again.status, again.body) == (304, b"")
        files.listing += b" "
        changed = await files.get("/object_info", f"If-None-Match: {etag}")
        assert changed.status == 200
        assert changed.all("etag") != first.all("etag")


async def test_a_listing_with_a_validator_is_asked_by_it():
    """Our backends name theirs: then the backend says that nothing has changed without making it again."""
    made: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            if seen.all("if-none-match") == [b'"f1"']:
                await peer.send(b'HTTP/1.1 304 Not Modified\r\nETag: "f1"\r\n\r\n')
            else:
                made.append(seen.target)
                await peer.reply(LIST, extra=b'ETag: "f1"\r\nContent-Type: application/json\r\n')

    async with stack(script, cache={"enabled": True}) as gateway:
        for line in ("Accept: */*", "Cache-Control: no-cache", "Pragma: no-cache"):
            async with gateway.client() as client:
                got = await client.get("/object_info", line)
                assert got.body == LIST
        assert made == [b"/object_info"]
        assert len(gateway.backend.seen) == 3


async def test_who_leaves_does_not_take_the_answer_along():
    """The first one goes; those behind it still get what was asked in its name."""
    async with cached(open_gate=False) as files:
        async with files.made.client() as leader:
            await leader.send(request("/object_info"))
            await until(lambda: len(files.seen) == 1)
            others = [asyncio.create_task(files.get("/object_info")) for _ in range(2)]
            await until(lambda: files.waiting() == 3)
            leader.reset()
        await until(lambda: files.waiting() == 2)
        files.gate.set()
        assert [got.body for got in await asyncio.gather(*others)] == [LIST, LIST]
        assert len(files.seen) == 2


async def test_when_all_leave_the_backend_is_left_in_peace():
    """Its connection is closed at once, and the next one to come is served as ever."""
    async with cached(open_gate=False) as files:
        async with files.made.client() as first, files.made.client() as second:
            await first.send(request("/object_info"))
            await until(lambda: len(files.seen) == 1)
            await second.send(request("/object_info"))
            await until(lambda: files.waiting() == 2)
            first.reset()
            second.reset()
            await until(lambda: files.made.idle)
        files.gate.set()
        assert (await files.get("/object_info")).body == LIST


async def test_a_backend_that_breaks_is_told_to_all_who_wait():
    """502 for those of that request; the next one is tried afresh."""
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number <= 2:
            peer.reset()
            return
        await peer.reply(LIST)

    async with stack(script, cache={"enabled": True}) as made, made.client() as client:
        assert (await client.get("/object_info")).status == 502
        assert (await client.get("/object_info")).status == 502
        assert (await client.get("/object_info")).body == LIST


async def test_a_kept_alive_connection_that_was_closed_is_no_error():
    """The request is sent again on a new one, as it would be without the cache."""
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(SCRIPT, extra=b'ETag: "1"\r\nCache-Control: no-cache\r\n')
        if peer.number == 1:
            await peer.request()
            peer.reset()
            return
        await peer.gone()

    async with stack(script, cache={"enabled": True}) as made, made.client() as client:
        assert (await client.get("/a.js")).body == SCRIPT
        assert (await client.get("/a.js")).body == SCRIPT
        assert made.backend.opened == 2


async def test_early_hints_of_a_shared_answer_reach_who_asked():
    """103 goes to the one in whose name the backend is asked."""
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await peer.reply(SCRIPT, extra=b'ETag: "1"\r\n')
        await peer.gone()

    async with stack(script, cache={"enabled": True}) as made, made.client() as client:
        await client.send(request("/a.js"))
        assert (await client.head()).status == 103
        assert (await client.answer()).body == SCRIPT
