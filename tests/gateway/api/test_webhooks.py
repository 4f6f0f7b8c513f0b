"""Webhooks are delivered at least once, signed, in spite of failures and restarts, and to nobody who is not meant."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.api.deliver import DeliveryError, Refused, deliver
from gateway.webhook import signature
from tests.doubles.http_backend import Peer, scripted
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until

HOME = {"allow": ("127.0.0.0/8",), "first_wait": 0.01, "timeout": 5.0}


class Receiver:
    """Answers with these statuses, the last again and again."""

    def __init__(self, *statuses: str) -> None:
        self._statuses = list(statuses)

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        await peer.reply(b"", status=status)


async def ended(here: House, job: str, webhook: object) -> None:
    """A job with this webhook that ends."""
    got = await here.post("/jobs", {"workflow": {"1": {}}, "prompt_id": job, "webhook": webhook}, gpu=None)
    assert got.status == 202, got.body
    here.comfy.finish(job)
    await until(lambda: here.record(job).ended)


def told(here: House, job: str) -> Any:
    return here.record(job).webhook


async def test_the_end_is_told_and_signed(tmp_path: Path):
    """The job as the API shows it, with a signature over id, time and body; the secret is shown to nobody."""
    async with scripted(Receiver("204 No Content")) as hook, house(tmp_path, webhooks=HOME) as here:
        await ended(here, "a", {"url": f"{hook.url}/hook?x=1", "secret": "s3cret"})
        await until(lambda: told(here, "a").get("over"))
        (seen,) = hook.seen
        assert (seen.method, seen.target) == (b"POST", b"/hook?x=1")
        sent = json.loads(seen.body)
        assert (sent["type"], sent["data"]["id"], sent["data"]["state"]) == ("job.ended", "a", "succeeded")
        (message,), (at,), (signed,) = (seen.all(f"webhook-{each}") for each in ("id", "timestamp", "signature"))
        assert signed.decode() == signature("s3cret", message.decode(), int(at), seen.body)
        shown = (await here.get("/jobs/a", None)).body
        assert json.loads(shown)["webhook"]["tries"] == 1
        assert b"s3cret" not in shown + seen.body
        assert hook.url.encode() not in shown + seen.body
        assert here.api.deliveries.counts == {"delivered": 1, "failed": 0, "given_up": 0}


async def test_it_is_tried_until_it_is_heard(tmp_path: Path):
    """Each attempt under the same id; errors, redirects and broken answers are none."""
    statuses = ("500 Internal Server Error", "302 Found", "100 Continue", "200 OK")
    async with scripted(Receiver(*statuses)) as hook, house(tmp_path, webhooks=HOME) as here:
        await ended(here, "a", hook.url)
        await until(lambda: told(here, "a").get("over"))
        assert len(hook.seen) == told(here, "a")["tries"] == 4
        assert len({seen.all("webhook-id")[0] for seen in hook.seen}) == 1
        assert hook.seen[0].all("webhook-signature") == []
        assert told(here, "a")["told"]


async def test_it_is_given_up_after_all_attempts(tmp_path: Path):
    """And says why; 410 ends it at once."""
    async with house(tmp_path, webhooks={**HOME, "attempts": 3}) as here:
        async with scripted(Receiver("503 Service Unavailable")) as hook:
            await ended(here, "a", hook.url)
            await until(lambda: told(here, "a").get("over"))
            assert len(hook.seen) == 3
        async with scripted(Receiver("410 Gone")) as hook:
            await ended(here, "b", hook.url)
            await until(lambda: told(here, "b").get("over"))
            assert len(hook.seen) == 1
        shown = json.loads((await here.get("/jobs/a", None)).body)["webhook"]
        assert (shown["given_up"], shown["tries"], shown["delivered_at"]) == (True, 3, None)
        assert "503" in shown["error"]
        assert here.api.deliveries.counts["given_up"] == 2


async def test_a_restart_goes_on_where_it_was(tmp_path: Path):
    """What is owed stands in the journal, and so does how often it has been tried."""
    kept = {"keep_for": 1e9}  # the double's jobs ended years ago
    waits = {**HOME, "first_wait": 0.2}
    async with scripted(Receiver("500 Internal Server Error")) as hook, house(tmp_path, webhooks=waits, **kept) as here:
        port = hook.port
        await ended(here, "a", hook.url)
        await until(lambda: told(here, "a").get("tries"))
    async with house(tmp_path, webhooks=HOME, up="", **kept) as here:
        heard: list[bytes] = []

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(receive, "127.0.0.1", port)
        async with server:
            await until(lambda: told(here, "a").get("over"))
        assert heard
        assert told(here, "a")["tries"] >= 2
        assert told(here, "a")["told"]


async def test_the_configured_address_is_told_of_every_job(tmp_path: Path):
    """Of those from GPU ports, too; a job's own address comes first."""
    async with scripted(Receiver("200 OK")) as common, scripted(Receiver("200 OK")) as own:
        settings = {**HOME, "url": common.url, "secret": "common"}
        async with house(tmp_path, webhooks=settings) as here:
            await here.submit("a", gpu=1)
            here.comfy.finish("a")
            await ended(here, "b", own.url)
            await until(lambda: told(here, "a").get("over") and told(here, "b").get("over"))
            assert [json.loads(seen.body)["data"]["id"] for seen in common.seen] == ["a"]
            assert [json.loads(seen.body)["data"]["id"] for seen in own.seen] == ["b"]
            assert own.seen[0].all("webhook-signature")


async def test_private_addresses_are_refused_unless_allowed(tmp_path: Path):
    """Nothing is sent, and it is not tried again."""
    async with scripted(Receiver("200 OK")) as hook, house(tmp_path, webhooks={"first_wait": 0.01}) as here:
        await ended(here, "a", hook.url)
        await until(lambda: told(here, "a").get("over"))
        assert (told(here, "a")["tries"], hook.opened) == (1, 0)
        assert "not public" in told(here, "a")["why"]


async def test_a_name_is_looked_up_once_and_its_address_judged(monkeypatch: pytest.MonkeyPatch):
    """What is connected to is the address that was judged, whatever the name means a moment later."""
    asked: list[str] = []
    answers = [["10.0.0.1", "127.0.0.1"], ["192.168.0.1"]]

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers.pop(0)]

    async with scripted(Receiver("200 OK")) as hook:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup, raising=False)
        url = f"http://hook.example:{hook.port}/"
        connect = asyncio.open_connection
        reached: list[object] = []

        async def open_connection(host: str, *args: Any, **more: Any) -> Any:
            reached.append(host)
            monkeypatch.undo()
            return await connect(host, *args, **more)

        monkeypatch.setattr(asyncio, "open_connection", open_connection)
        assert await deliver(url, b"", b"{}", timeout=5.0, allow=("127.0.0.1",)) == 200
        assert (asked, reached) == (["hook.example"], ["127.0.0.1"])
        assert hook.seen[0].all("host") == [f"hook.example:{hook.port}".encode()]
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup, raising=False)
        with pytest.raises(Refused, match=r"192\.168\.0\.1"):
            await deliver(url, b"", b"{}", timeout=5.0, allow=("127.0.0.1",))


async def test_what_is_no_answer_is_an_error():
    """Silence, garbage, and a head without end."""

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async def garbage(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"SSH-2.0\r\n\r\n")

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000)

    for script, words in ((silent, "within"), (garbage, "no HTTP"), (endless, "no answer")):
        async with scripted(script) as hook:
            with pytest.raises(DeliveryError, match=words):
                await deliver(hook.url, b"", b"{}", timeout=0.5, allow=("127.0.0.1",))


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for hook.example, and its key."""
    pem, key = folder / "c.pem", folder / "k.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=hook.example", "-addext", "subjectAltName=DNS:hook.example")
    files = ("-keyout", str(key), "-out", str(pem))
    subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True, capture_output=True)
    return pem, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_https_is_for_the_name_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The connection goes to the judged address, the certificate must be the name's."""
    pem, key = await asyncio.to_thread(certificate, tmp_path)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(pem, key)
    trusting = ssl.create_default_context(cafile=str(pem))

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    server = await asyncio.start_server(receive, "127.0.0.1", 0, ssl=inside)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def either(host: Any, port: Any, **more: Any) -> Any:
        return await (lookup(host, port) if str(host).endswith(".example") else resolve(host, port, **more))

    monkeypatch.setattr(loop, "getaddrinfo", either, raising=False)
    more: dict[str, Any] = {"timeout": 20.0, "allow": ("127.0.0.1",), "context": trusting}
    async with server:
        assert await deliver(f"https://hook.example:{port}/", b"", b"{}", **more) == 204
        with pytest.raises(DeliveryError, match="certificate"):
            await deliver(f"https://other.example:{port}/", b"", b"{}", **more)


async def test_only_so_many_are_under_way_at_once(tmp_path: Path):
    """The others wait their turn, and all are told in the end."""
    busy = most = 0

    async def slow(peer: Peer) -> None:
        nonlocal busy, most
        await peer.request()
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.02)
        busy -= 1
        await peer.reply(b"")

    async with scripted(slow) as hook, house(tmp_path, webhooks={**HOME, "at_once": 2}) as here:
        for number in range(8):
            await ended(here, f"j{number}", hook.url)
        await until(lambda: all(told(here, f"j{number}").get("told") for number in range(8)))
        assert most <= 2
