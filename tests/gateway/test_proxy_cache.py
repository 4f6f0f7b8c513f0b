"""Answers given to many, on the wire: who asks the backend, what it is asked, and what each client gets."""

import gzip

import pytest

from tests.doubles.cached_files import SCRIPT, Files, cached
from tests.doubles.http_client import request
from tests.doubles.http_stack import blocked, stack, stop_the_clock
from tests.doubles.wait import until


async def test_a_file_is_fetched_once():
    """The second client gets what the first one got, and the backend does not notice."""
    async with cached() as files:
        first, second = await files.get(), await files.get(gpu=3)
        assert first.body == second.body == SCRIPT
        assert len(files.seen) == 1
        assert files.outcomes == {"fetched": 1, "hit": 1}
        assert first.all("etag") == second.all("etag") == [b'"1-2"']
        assert first.all("age") == []
        assert len(second.all("age")) == 1
        assert len(second.all("content-length")) == len(second.all("x-request-id")) == 1


async def test_a_file_is_compressed_for_those_who_accept_it():
    """Once: both forms have their length and validator, and both say that they vary."""
    async with cached() as files:
        packed = await files.get("/a.mjs", "Accept-Encoding: gzip, br")
        plain = await files.get("/a.mjs")
        refused = await files.get("/a.mjs", "Accept-Encoding: gzip;q=0")
        assert packed.all("content-encoding") == [b"gzip"]
        assert gzip.decompress(packed.body) == SCRIPT
        assert len(packed.body) < len(SCRIPT) / 4
        assert packed.all("etag") == [b'W/"1-2"']
        assert plain.all("content-encoding") == refused.all("content-encoding") == []
        assert plain.body == refused.body == SCRIPT
        for got in (packed, plain):
            assert got.all("vary") == [b"Accept-Encoding"]
        assert len(files.seen) == 1
        assert files.seen[0].all("accept-encoding") == [b"identity"]


async def test_a_large_file_is_compressed_beside_the_loop():
    """Half a megabyte and more goes to a thread; the answer waits for it."""
    async with cached() as files:
        files.body = b"const a = [%b];" % b", ".join(b"%d" % number for number in range(80_000))
        got = await files.get("/assets/index.js", "Accept-Encoding: gzip")
        assert gzip.decompress(got.body) == files.body


@pytest.mark.parametrize(
    "lines", [b"Content-Type: image/png\r\n", b"Content-Type: text/css\r\nCache-Control: no-transform\r\n", b""]
)
async def test_what_is_packed_already_is_left_alone(lines: bytes):
    """Pictures, what must not be transformed, and what has no type."""
    async with cached() as files:
        files.lines = lines
        got = await files.get("/a.png", "Accept-Encoding: gzip")
        assert got.all("content-encoding") == got.all("vary") == []
        assert got.all("etag") == [b'"1-2"']


@pytest.mark.parametrize("line", ['If-None-Match: "1-2"', 'If-None-Match: "x", W/"1-2"', "If-None-Match: *"])
async def test_who_has_it_is_told_so(line: str):
    """304 with the validator of the form that would have been sent, and nothing else."""
    async with cached() as files:
        await files.get()
        got = await files.get("/a.mjs", line, "Accept-Encoding: gzip")
        assert (got.status, got.body) == (304, b"")
        assert got.all("etag") == [b'W/"1-2"']
        assert got.all("content-length") == got.all("content-encoding") == got.all("content-type") == []
        assert got.all("vary") == [b"Accept-Encoding"]
        other = await files.get("/a.mjs", 'If-None-Match: "old"')
        assert other.status == 200


async def test_who_asks_by_date_is_told_so_too():
    """If-Modified-Since counts where there is no If-None-Match."""
    async with cached() as files:
        first = await files.get()
        modified = first.all("last-modified")[0].decode()
        assert (await files.get("/a.mjs", f"If-Modified-Since: {modified}")).status == 304
        assert (await files.get("/a.mjs", "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT")).status == 200
        both = await files.get("/a.mjs", f"If-Modified-Since: {modified}", 'If-None-Match: "old"')
        assert both.status == 200


async def test_head_is_what_get_would_be():
    """A kept answer's head, in the form asked for; nothing is fetched for a HEAD alone."""
    async with cached() as files:
        before = await files.get(method="HEAD")
        assert files.seen[-1].method == b"HEAD"
        assert before.status == 200
        got = await files.get("/a.mjs", "Accept-Encoding: gzip")
        head = await files.get("/a.mjs", "Accept-Encoding: gzip", method="HEAD")
        assert len(files.seen) == 2
        assert head.all("content-length") == [b"%d" % len(got.body)]
        assert head.all("content-encoding") == [b"gzip"]


async def test_ranges_are_the_backends_business():
    """A part is asked of it and passed on; it neither comes from the cache nor goes into it."""
    async with cached() as files:
        for _ in range(2):
            got = await files.get("/a.mjs", "Range: bytes=0-1", "Accept-Encoding: gzip")
            assert (got.status, got.body) == (206, SCRIPT[:2])
            assert got.all("content-encoding") == []
        assert len(files.seen) == 2
        whole = await files.get()
        assert whole.body == SCRIPT
        weak = await files.get("/a.mjs", "Range: bytes=0-1", 'If-Range: W/"1-2"')
        assert (weak.status, weak.body) == (200, SCRIPT)


async def test_a_hard_reload_reaches_the_backend():
    """No-cache asks it by the validator; what has changed comes at once, to all."""
    async with cached() as files:
        await files.get()
        got = await files.get("/a.mjs", "Cache-Control: no-cache")
        assert got.body == SCRIPT
        assert files.seen[1].all("if-none-match") == [b'"1-2"']
        assert files.outcomes == {"fetched": 1, "validated": 1}
        files.body, files.etag = b"changed", b'"3-4"'
        assert (await files.get()).body == SCRIPT
        assert (await files.get("/a.mjs", "Cache-Control: no-cache")).body == b"changed"
        assert (await files.get()).body == b"changed"


@pytest.mark.parametrize("control", ["no-cache", "max-age=0", "public, must-revalidate, max-age=0"])
async def test_a_file_that_must_be_validated_is_each_time(control: str):
    """ComfyUI marks its scripts so: a changed one shows at the next request."""
    async with cached() as files:
        files.lines += b"Cache-Control: %b\r\n" % control.encode()
        for _ in range(3):
            assert (await files.get("/a.js", "Accept-Encoding: gzip")).status == 200
        assert [seen.all("if-none-match") for seen in files.seen] == [[], [b'"1-2"'], [b'"1-2"']]
        files.body, files.etag = b"changed", b'"3-4"'
        assert (await files.get("/a.js")).body == b"changed"


async def test_a_file_without_a_word_holds_for_a_bounded_time():
    """A tenth of its age, and no longer than [cache] fresh."""
    async with cached(fresh=20.0) as files:
        clock = stop_the_clock(files.made)
        await files.get()
        clock.advance(19)
        await files.get()
        assert len(files.seen) == 1
        clock.advance(2)
        await files.get()
        assert len(files.seen) == 2
        files.age = 50.0  # seconds: a file that somebody works on
        files.etag = b'"5-6"'
        await files.get("/b.mjs")
        clock.advance(4)
        await files.get("/b.mjs")
        assert len(files.seen) == 3
        clock.advance(2)
        await files.get("/b.mjs")
        assert len(files.seen) == 4


async def test_another_life_of_the_backend_is_asked_again():
    """What an earlier process said does not count, not even by its validator."""
    async with cached() as files:
        await files.get()
        member = files.made.fleet.members[0]
        member.backend_down("restarts", 1)
        member.backend_up("double", boot="another")
        files.body = b"other"
        assert (await files.get()).body == b"other"
        assert files.seen[1].all("if-none-match") == []


async def test_what_is_not_to_be_shared_is_passed_on():
    """The first to ask gets that very answer; the others ask for themselves, and next time do so at once."""
    async with cached() as files:
        files.lines += b"Set-Cookie: who=%d\r\n" % len(files.seen)
        for number in range(1, 4):
            got = await files.get()
            assert (got.body, got.all("set-cookie")) == (SCRIPT, [b"who=0"])
            assert len(files.seen) == number
        assert files.outcomes.get("hit") is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_what_was_written_is_asked_for_again(method: str):
    """A write that the backend accepted ends what was kept of its target; one that it refused does not."""
    async with cached() as files:
        await files.get()
        files.status = "403 Forbidden"
        await files.get(method=method)
        files.status = "200 OK"
        await files.get()
        assert [seen.method for seen in files.seen] == [b"GET", method.encode()]
        await files.get(method=method)
        await files.get()
        assert [seen.method for seen in files.seen[2:]] == [method.encode(), b"GET"]


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "302 Found"])
async def test_other_answers_pass_as_they_are(status: str):
    """With their body, in one request to the backend."""
    async with cached() as files:
        files.status = status
        got = await files.get()
        assert (got.status, got.body) == (int(status[:3]), SCRIPT)
        assert len(files.seen) == 1


async def test_users_do_not_meet():
    """Two cookies, two answers; credentials are never shared at all."""
    async with cached() as files:
        for line in ("Cookie: a=1", "Cookie: a=2", "Authorization: Bearer x", "Authorization: Bearer x"):
            await files.get("/a.mjs", line)
        assert len(files.seen) == 4
        await files.get("/a.mjs", "Cookie: a=1")
        assert len(files.seen) == 4


async def test_what_is_too_large_is_streamed():
    """It passes without being kept, and in one request."""
    async with cached(entry=1000) as files:
        for _ in range(2):
            assert (await files.get()).body == SCRIPT
        assert files.made.proxy.cache is not None
        assert files.made.proxy.cache.entries == 0
        assert len(files.seen) == 2


async def test_memory_stays_within_its_bound():
    """However many files are asked for."""
    async with cached(size=40_000) as files:
        for number in range(30):
            await files.get(f"/{number}.mjs", f"X: {number}")
        cache = files.made.proxy.cache
        assert cache is not None
        assert 0 < cache.used <= 40_000
        assert cache.entries < 30


async def test_a_field_that_is_new_each_time_does_not_fill_the_memory():
    """Such requests end up going to the backend, and others' entries stay."""
    async with cached() as files:
        for number in range(20):
            await files.get("/a.mjs", f"X-Trace: {number}")
        assert files.made.proxy.cache is not None
        assert files.made.proxy.cache.entries == 8
        assert files.outcomes["passed"] == 12


async def test_a_slow_reader_of_a_kept_file_costs_no_copy():
    """What it has not taken is not written; it gets the whole in the end, and others are served meanwhile."""
    async with cached() as files:
        files.lines = b"Content-Type: image/png\r\n"
        files.body = bytes(range(256)) * 40_000
        await files.get("/big.png")
        async with files.made.client(0, receive_buffer=4096) as slow:
            await slow.send(request("/big.png"))
            served = next(iter(files.made.proxy.clients))
            await until(lambda: blocked(served.transport))
            assert served.transport.get_write_buffer_size() < 1_000_000
            assert (await files.get("/big.png")).body == files.body
            assert (await slow.answer()).body == files.body
        assert len(files.seen) == 1


async def test_a_reader_of_a_kept_file_may_leave():
    """Half way; nothing is left behind."""
    async with cached() as files:
        files.lines = b"Content-Type: image/png\r\n"
        files.body = bytes(8_000_000)
        await files.get("/big.png")
        async with files.made.client(0, receive_buffer=4096) as slow:
            await slow.send(request("/big.png"))
            await slow.head()
            slow.reset()
        await until(lambda: files.made.idle)


async def test_only_if_cached_never_asks_the_backend():
    """504 for what is not kept (RFC 9111 §5.2.1.7)."""
    async with cached() as files:
        assert (await files.get("/a.mjs", "Cache-Control: only-if-cached")).status == 504
        await files.get()
        assert (await files.get("/a.mjs", "Cache-Control: only-if-cached")).status == 200
        assert len(files.seen) == 1


async def test_off_means_off():
    """Every request goes to the backend with its own fields, and comes back untouched."""
    async with stack(Files(), cache={"enabled": False}) as made, made.client() as client:
        for _ in range(2):
            got = await client.get("/a.mjs", "Accept-Encoding: gzip")
            assert (got.body, got.all("vary"), got.all("content-encoding")) == (SCRIPT, [], [])
        assert made.proxy.cache is None
        assert [seen.all("accept-encoding") for seen in made.backend.seen] == [[b"gzip"], [b"gzip"]]


async def test_under_a_prefix_it_is_the_same_file():
    """The front door's prefixes, the front door itself and the ports share."""
    async with cached() as files:
        for gpu, target in ((None, "/gpu1/a.mjs"), (None, "/a.mjs"), (2, "/a.mjs")):
            assert (await files.get(target, gpu=gpu)).body == SCRIPT
        assert len(files.seen) == 1


async def test_pipelined_requests_are_answered_in_order():
    """Kept and fetched answers on one connection."""
    async with cached() as files, files.made.client() as client:
        await files.get("/kept.mjs")
        head = request("/kept.mjs", method="HEAD")
        await client.send(request("/kept.mjs") + request("/new.mjs") + head + request("/queue"))
        assert (await client.answer()).all("age") != []
        assert (await client.answer()).all("age") == []
        assert (await client.answer(head=True)).status == 200
        assert (await client.answer()).status == 200


# Listings
