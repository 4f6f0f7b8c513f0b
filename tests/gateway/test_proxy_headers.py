"""Header fields, paths and the request line on their way to the backend and back."""

import re

import pytest

from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack

HOP_BY_HOP = [
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Trailer: X-T",
    "Proxy-Authorization: Basic eDp5",
    "Proxy-Authenticate: Basic",
]


async def test_hop_by_hop_and_nominated_fields_stay_here():
    """Neither the standard hop-by-hop fields nor what ``Connection`` names reach the backend."""
    async with stack() as made, made.client() as client:
        await client.get("/", "Connection: keep-alive, X-Nom", "X-Nom: 1", "X-Kept: 2", *HOP_BY_HOP)
        names = {name.lower() for name, _ in made.backend.seen[0].fields}
        assert b"x-kept" in names
        wrong = {b"connection", b"x-nom", b"upgrade", *(line.split(":")[0].lower().encode() for line in HOP_BY_HOP)}
        assert not names & wrong


async def test_connection_cannot_take_away_what_the_gateway_sets():
    """A client that nominates our own fields, ``Host`` or the length changes nothing."""
    nominate = "Connection: X-TARGET-GPU, X-Forwarded-For, X-Real-IP, X-Request-ID, Host, Content-Length"
    async with stack() as made, made.client(2) as client:
        got = await client.get("/", nominate, method="POST", body=b"1234")
        assert got.body == b"1234"
        seen = made.backend.seen[0]
        assert seen.all("x-target-gpu") == [b"2"]
        assert seen.all("x-forwarded-for") == seen.all("x-real-ip") == [b"127.0.0.1"]
        assert seen.all("host") == [b"gate:8181"]
        assert len(seen.all("x-request-id")) == 1


@pytest.mark.parametrize("gpu", range(4))
async def test_the_gpu_is_the_ports_whatever_the_client_says(gpu):
    """No spelling of X-TARGET-GPU passes; the backend sees exactly one, the port's."""
    spoofs = [f"{name}: 9" for name in ("X-TARGET-GPU", "x-target-gpu", "X_TARGET_GPU", "x-Target_Gpu", "X_TARGET-GPU")]
    async with stack() as made, made.client(gpu) as client:
        await client.get("/", *spoofs)
        found = [
            value for name, value in made.backend.seen[0].fields if name.lower().replace(b"_", b"-") == b"x-target-gpu"
        ]
        assert found == [str(gpu).encode()]


async def test_trailers_cannot_bring_the_gpu_in():
    """A chunked body's trailers pass, but none that steers."""
    body = b"2\r\nhi\r\n0\r\nX-Target-Gpu: 3\r\nX_TARGET_GPU: 3\r\nHost: evil\r\nContent-Length: 9\r\nX-Sum: 7\r\n\r\n"
    async with stack() as made, made.client() as client:
        await client.send(request("/", "Transfer-Encoding: chunked", method="POST") + body)
        assert (await client.answer()).body == b"hi"
        assert made.backend.trailers == [b"X-Sum: 7\r\n"]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8181", "http://127.0.0.1:8181"),
        ("127.0.0.1:8188", "http://192.168.1.5:8181"),
        ("127.0.0.1", "http://127.0.0.1:8181"),
        ("localhost:8181", "http://127.0.0.1:8181"),
        ("comfy.example", "https://comfy.example"),
        ("comfy.example", "http://evil.example"),
        ("127.0.0.1:8181", "null"),
        ("[::1]:8183", "http://[::1]:8183"),
        ("LOCALHOST:8181", "HTTP://LOCALHOST:8181"),
    ],
)
async def test_host_is_verbatim(host, origin):
    """ComfyUI compares Host and Origin, so neither may change, in requests as in handshakes."""
    async with stack() as made, made.client() as client:
        for lines in ((), ("Connection: Upgrade", "Upgrade: websocket")):
            await client.send(request("/ws", f"Origin: {origin}", *lines, host=host))
            await client.answer()
            seen = made.backend.seen[-1]
            assert (seen.all("host"), seen.all("origin")) == ([host.encode()], [origin.encode()])


SPOOFED = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "X_Forwarded_For: 6.6.6.6",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil",
    "Forwarded: for=6.6.6.6",
]


async def test_forwarding_fields_of_strangers_are_replaced():
    """Nobody untrusted says where a request came from."""
    async with stack() as made, made.client() as client:
        await client.get("/", *SPOOFED)
        seen = made.backend.seen[0]
        assert seen.all("x-forwarded-for") == seen.all("x-real-ip") == [b"127.0.0.1"]
        assert seen.all("x-forwarded-proto") == [b"http"]
        assert seen.all("x-forwarded-host") == [b"gate:8181"]
        assert not seen.all("forwarded")
        assert not seen.all("x_forwarded_for")


async def test_forwarding_fields_of_trusted_proxies_are_continued():
    """Behind a trusted proxy the chain is kept, and the client is the first untrusted address from the right."""
    async with stack(forwarded={"trusted_proxies": ("127.0.0.0/8",)}) as made, made.client() as client:
        chain = "X-Forwarded-For: 1.1.1.1, 6.6.6.6"
        await client.get("/", chain, "X-Forwarded-Proto: https", "X-Forwarded-Host: comfy.example")
        seen = made.backend.seen[0]
        assert seen.all("x-forwarded-for") == [b"1.1.1.1, 6.6.6.6, 127.0.0.1"]
        assert seen.all("x-real-ip") == [b"6.6.6.6"]
        assert seen.all("x-forwarded-proto") == [b"https"]
        assert seen.all("x-forwarded-host") == [b"comfy.example"]


async def test_no_request_field_is_invented():
    """A bare request arrives with nothing but Host and our own fields."""
    async with stack() as made, made.client() as client:
        await client.get("/")
        assert [name.decode().lower() for name, _ in made.backend.seen[0].fields] == [
            "host",
            "x-real-ip",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-target-gpu",
            "x-request-id",
        ]


async def test_no_answer_field_is_invented_or_lost():
    """The client gets the backend's fields, in order, with duplicates, and X-Request-ID."""
    lines = b"Set-Cookie: a=1\r\nX-D: 1\r\nSet-Cookie: b=2\r\nX-D: 1\r\nX-L: caf\xe9\r\nX-E: \r\n"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(b"x", extra=lines, status="299 Fine as it is")

    async with stack(script) as made, made.client() as client:
        got = await client.get("/")
        assert (got.status, got.reason) == (299, b"Fine as it is")
        assert got.fields[:-1] == [
            (b"Set-Cookie", b"a=1"),
            (b"X-D", b"1"),
            (b"Set-Cookie", b"b=2"),
            (b"X-D", b"1"),
            (b"X-L", b"caf\xe9"),
            (b"X-E", b""),
            (b"Content-Length", b"1"),
        ]
        assert got.names[-1] == "x-request-id"


async def test_answer_hop_by_hop_fields_stay_here():
    """What the backend says about its own connection is not the client's business."""
    lines = b"Connection: keep-alive, X-Nom\r\nX-Nom: 1\r\nKeep-Alive: timeout=1\r\nProxy-Authenticate: x\r\n"

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"x", extra=lines + b"Upgrade: h2c\r\nX-Kept: 1\r\n")

    async with stack(script) as made, made.client() as client:
        got = await client.get("/")
        assert got.names == ["x-kept", "content-length", "x-request-id"]
        assert (await client.get("/")).status == 200


async def test_duplicate_and_strange_request_fields_pass_in_order():
    """Cookies stay two, bytes beyond ASCII stay what they are."""
    async with stack() as made, made.client() as client:
        await client.get("/", "Cookie: a=1", "X-D: caf\xe9", "Cookie: b=2", "X-D: ", "X-Under_Score: 1")
        fields = made.backend.seen[0].fields[1:6]
        assert fields == [
            (b"Cookie", b"a=1"),
            (b"X-D", b"caf\xe9"),
            (b"Cookie", b"b=2"),
            (b"X-D", b""),
            (b"X-Under_Score", b"1"),
        ]


@pytest.mark.parametrize(
    "target",
    [
        "/userdata/workflows%2Fa.json",
        "/a/%7E%41;p=1//b;y/[1]/^+|\"'<>{}`\\",
        "/p?q=%2F%7e&[1]=^&a=b=c&&",
        "/p/x/../echo/./",
        "/p?",
        "/?%zz&%",
        "//api//prompt",
    ],
)
@pytest.mark.parametrize("prefix", ["", "/gpu1"])
async def test_path_and_query_pass_byte_for_byte(target, prefix):
    """Nothing is decoded, resolved or encoded, also behind a prefix, which alone is taken off."""
    async with stack() as made, made.client(None if prefix else 1) as client:
        assert (await client.get(prefix + target)).status == 200
        assert made.backend.seen[0].target == target.encode()
        assert made.backend.seen[0].all("x-target-gpu") == [b"1"]


@pytest.mark.parametrize("sent", ["abc-1_2.Z", "a" * 128])
async def test_a_sane_request_id_is_kept(sent):
    """The client's id goes to the backend and comes back."""
    async with stack() as made, made.client() as client:
        got = await client.get("/", f"X-Request-ID: {sent}")
        assert got.all("x-request-id") == made.backend.seen[0].all("x-request-id") == [sent.encode()]


@pytest.mark.parametrize("sent", [[], ["a b"], ["a" * 129], ["<x>"], [""], ["a", "b"]])
async def test_any_other_request_id_is_replaced(sent):
    """Without a sane id one is made: one, the same both ways, new for each request."""
    async with stack() as made, made.client() as client:
        ids = set()
        for turn in range(2):
            got = await client.get("/", *[f"X-Request-ID: {value}" for value in sent])
            (told,) = got.all("x-request-id")
            assert made.backend.seen[turn].all("x-request-id") == [told]
            assert re.fullmatch(rb"[A-Za-z0-9._-]{1,128}", told)
            assert told not in [value.encode() for value in sent]
            ids.add(told)
        assert len(ids) == 2


async def test_absolute_form_names_the_host_and_nothing_else():
    """The target's authority becomes Host; nobody is connected to."""
    async with stack() as made, made.client() as client:
        await client.send(b"GET http://other.example:99/a%2Fb?c HTTP/1.1\r\nHost: gate:8181\r\nX-A: 1\r\n\r\n")
        assert (await client.answer()).body == b"ok"
        seen = made.backend.seen[0]
        assert seen.target == b"/a%2Fb?c"
        assert seen.all("host") == [b"other.example:99"]
        assert seen.all("x-a") == [b"1"]
        await client.send(b"GET http://other.example HTTP/1.1\r\nHost: gate:8181\r\nX-A: 1\r\n\r\n")
        await client.answer()
        assert made.backend.seen[1].target == b"/"


async def test_repeated_heads_do_not_leak_into_each_other():
    """A connection whose field lines change between requests is read afresh each time."""
    async with stack() as made, made.client() as client:
        for line in ("X-A: 1", "X-A: 2", "X-A: 2", "X-B: 1"):
            await client.get("/", line)
        sent = [seen.fields[1] for seen in made.backend.seen]
        assert sent == [(b"X-A", b"1"), (b"X-A", b"2"), (b"X-A", b"2"), (b"X-B", b"1")]


async def test_redirects_are_passed_on_and_never_followed():
    """A Location stays as it is on a port, and leads back under the prefix behind one."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"", status="302 Found", extra=b"Location: /x?y\r\n")

    async with stack(script) as made:
        async with made.client(0) as client:
            assert (await client.get("/")).all("location") == [b"/x?y"]
        async with made.client(None) as client:
            assert (await client.get("/gpu3/a")).all("location") == [b"/gpu3/x?y"]
        assert len(made.backend.seen) == 2


async def test_behind_a_prefix_everything_that_points_here_leads_back_under_it():
    """Location, Content-Location, Refresh and cookies' paths; on a port nothing is touched."""
    lines = (
        b"Location: http://gate:8181/x\r\nContent-Location: /y\r\nRefresh: 5; url=/z\r\n"
        b"Set-Cookie: a=1; Path=/; HttpOnly\r\nSet-Cookie: b=2\r\n"
    )
    names = ("location", "content-location", "refresh", "set-cookie")

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"", status="201 Created", extra=lines)

    async with stack(script) as made:
        async with made.client(None) as client:
            got = await client.get("/gpu1/a")
            assert [got.all(name) for name in names] == [
                [b"http://gate:8181/gpu1/x"],
                [b"/gpu1/y"],
                [b"5; url=/gpu1/z"],
                [b"a=1; Path=/gpu1/; HttpOnly", b"b=2"],
            ]
        async with made.client(1) as client:
            got = await client.get("/a")
            pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
            assert [list(pair) for pair in got.fields[:5]] == pairs
