"""``/jobs/{id}/events``: states and progress as they come, and the end."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.doubles.http_client import RawClient
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until


class Events:
    """One stream of events, read part by part."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._text = ""

    async def begin(self, job: str, *lines: str) -> "Events":
        head = "".join(f"{line}\r\n" for line in ("Host: x", *lines))
        await self._client.send(f"GET /jobs/{job}/events HTTP/1.1\r\n{head}\r\n".encode())
        got = await self._client.head()
        assert got.status == 200
        assert got.all("content-type") == [b"text/event-stream; charset=utf-8"]
        return self

    async def next(self) -> dict[str, Any]:
        """The next event's fields, comments among them under an empty name; nothing when it has ended."""
        async with asyncio.timeout(30):
            while "\n\n" not in self._text:
                size = int(await self._client.reader.readuntil(b"\r\n"), 16)
                self._text += (await self._client.reader.readexactly(size)).decode()
                await self._client.reader.readexactly(2)
                if not size:
                    return {}
        text, _, self._text = self._text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in text.split("\n"))
        if "data" in fields:
            fields["data"] = json.loads(fields["data"])
        return fields


async def tell(here: House, event: str, **data: Any) -> None:
    """The backend says this."""
    await here.desk.live._event(json.dumps({"type": event, "data": data, "gpu_id": 0}).encode(), 0)


async def test_a_jobs_way_is_told_to_its_end(tmp_path: Path):
    """States with numbers, progress without; after the end the answer is complete and the connection free."""
    async with house(tmp_path) as here, here.client(None) as client:
        await here.submit("a")
        events = await Events(client).begin("a")
        first = await events.next()
        assert (first["event"], first["id"], first["data"]["state"]) == ("state", "1", "queued")
        here.comfy.start()
        second = await events.next()
        assert (second["event"], second["id"], second["data"]["state"]) == ("state", "2", "running")
        await tell(here, "execution_start", prompt_id="a")
        await tell(here, "executing", prompt_id="a", node="1")
        await tell(here, "progress", prompt_id="a", node="1", value=3, max=4)
        while (event := await events.next())["data"].get("value") is None:
            assert event["event"] == "progress"
        assert (event["data"]["node"], event["data"]["value"], event["data"]["max"]) == ("1", 3, 4)
        assert "id" not in event
        shown = json.loads((await here.get("/jobs/a", None)).body)["progress"]
        assert (shown["value"], shown["nodes_total"]) == (3, 1)
        here.comfy.finish("a")
        await tell(here, "executing", prompt_id="a", node=None)
        last = await events.next()
        assert (last["event"], last["id"]) == ("end", "3")
        assert (last["data"]["state"], last["data"]["progress"]) == ("succeeded", None)
        assert await events.next() == {}
        assert (await client.get("/jobs/a")).status == 200


async def test_who_comes_again_goes_on_where_it_left(tmp_path: Path):
    """``Last-Event-ID``: what was heard is not told again; after the end there is nothing more, and 204 says so."""
    async with house(tmp_path) as here:
        await here.submit("a")
        here.comfy.start()
        await until(lambda: here.states()["a"] == "running")
        here.comfy.finish("a")
        await until(lambda: here.record("a").ended)
        async with here.client(None) as client:
            events = await Events(client).begin("a", "Last-Event-ID: 1")
            assert [(await events.next())["id"] for _ in range(2)] == ["2", "3"]
            assert await events.next() == {}
        async with here.client(None) as client:
            assert (await client.get("/jobs/a/events", "Last-Event-ID: 3")).status == 204
            assert (await client.get("/jobs/b/events")).status == 404
            head = await client.get("/jobs/a/events", method="HEAD")
            assert (head.status, head.all("content-type")) == (200, [b"text/event-stream; charset=utf-8"])


async def test_silence_is_filled(tmp_path: Path):
    """A comment now and then, so that proxies keep the connection and a client that is gone is noticed."""
    async with house(tmp_path) as here, here.client(None) as client:
        here.api._events.heartbeat = 0.01
        await here.submit("a")
        events = await Events(client).begin("a")
        await events.next()
        assert await events.next() == {"": "still here"}


async def test_who_leaves_is_forgotten(tmp_path: Path):
    """Nothing of a stream is left when its client has gone."""
    async with house(tmp_path) as here:
        await here.submit("a")
        async with here.client(None) as client:
            await (await Events(client).begin("a")).next()
            assert here.api.watch.waited("a")
        await until(lambda: not here.api.watch.waited("a") and not here.server._proxy.tasks)
        assert here.states() == {"a": "queued"}


async def test_streams_end_with_the_gateway(tmp_path: Path):
    """At drain each ends at once and complete; the client comes again to the next one."""
    async with house(tmp_path) as here, here.client(None) as client:
        await here.submit("a")
        events = await Events(client).begin("a")
        await events.next()
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(here.server.drain(30.0), name="drain")
            assert await events.next() == {}
        assert draining.done()


async def test_an_old_client_gets_events_up_to_the_close(tmp_path: Path):
    """HTTP/1.0 knows no chunks."""
    async with house(tmp_path) as here, here.client(None) as client:
        await here.submit("a")
        here.comfy.finish("a")
        await until(lambda: here.record("a").ended)
        await client.send(b"GET /jobs/a/events HTTP/1.0\r\n\r\n")
        got = await client.answer()
        assert not got.all("transfer-encoding")
        assert b"event: end\n" in got.body


async def test_the_newest_preview_is_shown(tmp_path: Path):
    """While the job runs; else 404."""
    async with house(tmp_path) as here:
        await here.submit("a")
        assert (await here.get("/jobs/a/preview", None)).status == 404
        await tell(here, "execution_start", prompt_id="a")
        text = json.dumps({"prompt_id": "a", "gpu_id": 0}).encode()
        here.desk.live._preview((4).to_bytes(4, "big") + len(text).to_bytes(4, "big") + text + b"JPEG")
        got = await here.get("/jobs/a/preview", None)
        assert (got.status, got.body, got.all("content-type")) == (200, b"JPEG", [b"image/jpeg"])
