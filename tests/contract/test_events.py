"""Events: to whom, in which order, and that nobody's silence or slowness is another's."""

import asyncio
import json
import uuid

import aiohttp

from tests.contract.client import Client, endless, picture, sleeper, unlike, until
from tests.contract.conftest import GPUS


async def test_order_is_comfyuis(client: Client):
    """From execution_start to executing with no node, in the order every client waits for."""
    me = uuid.uuid4().hex
    async with client.listen(me, 1) as heard:
        assert heard.events[0][0] == "status"
        assert heard.events[0][1]["sid"] == me
        prompt_id = await client.submit(sleeper(0.2), 1, client_id=me)
        await heard.ended(prompt_id)
    kinds = [kind for kind, _ in heard.of(prompt_id)]
    once = [kind for kind in kinds if kind not in {"progress", "progress_state"}]
    start, end = ["execution_start", "execution_cached"], ["executed", "execution_success", "executing"]
    assert once == [*start, *["executing"] * 3, *end]
    assert kinds.index("progress_state") > kinds.index("execution_cached")
    assert "progress" in kinds
    nodes = [data["node"] for kind, data in heard.of(prompt_id) if kind == "executing"]
    assert nodes == ["1", "100", "2", None]
    (executed,) = [data for kind, data in heard.of(prompt_id) if kind == "executed"]
    assert executed["output"]["images"][0]["filename"].startswith("sleeper_")
    progress = [data for kind, data in heard.of(prompt_id) if kind == "progress"]
    assert all(set(data) == {"value", "max", "prompt_id", "node"} for data in progress)
    states = [data["nodes"] for kind, data in heard.of(prompt_id) if kind == "progress_state"]
    assert states[-1]["2"]["state"] == "finished"
    assert set(states[0]["1"]) >= {"value", "max", "state", "node_id", "prompt_id", "display_node_id"}


async def test_cached_outputs_are_shown_again(client: Client):
    """A job that an earlier one answers entirely still tells its client what it shows."""
    me, prompt = uuid.uuid4().hex, picture()
    first = await client.pictures(await client.submit(prompt, 1))
    async with client.listen(me, 1) as heard:
        prompt_id = await client.submit(prompt, 1, client_id=me)
        await heard.ended(prompt_id)
    (cached,) = [data for kind, data in heard.of(prompt_id) if kind == "execution_cached"]
    assert set(cached["nodes"]) == {"1", "2"}
    (executed,) = [data for kind, data in heard.of(prompt_id) if kind == "executed"]
    assert executed["output"]["images"] == first


async def test_each_client_hears_its_own_jobs(client: Client):
    """Eight clients on four lanes at once: every event belongs to its hearer's job."""
    names = [(f"client-{uuid.uuid4().hex}", index % GPUS) for index in range(2 * GPUS)]
    async with contextlib_all(client, names) as heard:
        ids = [await client.submit(sleeper(0.2), gpu, client_id=name) for name, gpu in names]
        for listener, prompt_id in zip(heard, ids, strict=True):
            await listener.ended(prompt_id)
            assert listener.jobs() == {prompt_id}


async def test_the_same_client_id_on_two_ports_is_two_clients(client: Client):
    """The frontend keeps its id in the tab: what it hears on a port is that port's job alone."""
    me = uuid.uuid4().hex
    async with client.listen(me, 1) as one, client.listen(me, 2) as two:
        first = await client.submit(sleeper(0.2), 1, client_id=me)
        second = await client.submit(sleeper(0.2), 2, client_id=me)
        await one.ended(first)
        await two.ended(second)
        assert (one.jobs(), two.jobs()) == ({first}, {second})
    async with client.listen(me, 1) as one:
        async with client.listen(me, 2):
            pass
        third = await client.submit(picture(), 1, client_id=me)  # the other socket's end did not take this one along
        await one.ended(third)


async def test_jobs_without_a_client_tell_nobody(client: Client):
    """A job that names no client reaches no socket but by status."""
    async with client.listen(None, 1) as heard, client.listen(None) as front:
        await client.done(await client.submit(sleeper(0.1), 1, client_id=None))
        await heard.until(lambda: heard.remaining()[-1] == 0 and len(heard.remaining()) > 2)
        own = ("execution_start", "executing", "executed", "execution_success")
        assert not [kind for kind, _ in heard.events + front.events if kind in own]


async def test_status_counts_the_lane_of_the_socket(client: Client):
    """Another lane's jobs change nothing; every change of the own lane is told, up and down to 0."""
    async with client.listen(None, 1) as one, client.listen(None, 2) as two:
        prompt_id = await client.submit(sleeper(0.3), 1)
        await client.submit(picture(), 1)
        await one.until(lambda: max(one.remaining()) == 2)
        await client.done(prompt_id)
        await one.until(lambda: one.remaining()[-1] == 0)
        assert set(two.remaining()) == {0}


async def test_a_client_that_comes_later_is_told_the_truth(client: Client):
    """A socket opened after the POST does not hear 0 while the job waits, on its port or on the front door."""
    for gpu in (1, None):
        before = await client.submit(endless(), 1)
        await client.running(before)
        me = uuid.uuid4().hex
        prompt_id = await client.submit(picture(), 1, client_id=me)
        async with client.listen(me, gpu) as heard:
            await client.submit(picture(), 1, client_id=me)  # a change, so that another status comes
            await heard.until(lambda: len(heard.remaining()) > 1)
            assert min(heard.remaining()) > 0
            await client.post("/interrupt", {"prompt_id": before})
            await heard.ended(prompt_id)
            await client.drained()


async def test_an_observer_hears_its_own_jobs_from_every_lane(client: Client):
    """A socket without a GPU gets its client's events wherever the job runs, and status counts those jobs."""
    me = uuid.uuid4().hex
    async with client.listen(me) as heard:
        assert heard.remaining() == [0]
        await client.running(await client.submit(endless(), 0, client_id="somebody-else"))
        ids = [await client.submit(picture(), gpu, client_id=me) for gpu in range(1, GPUS)]
        for each in ids:
            await heard.ended(each)
        await heard.until(lambda: heard.remaining()[-1] == 0)
        assert heard.jobs() == set(ids)
        assert max(heard.remaining()) <= GPUS - 1


async def test_who_connects_again_is_told_its_node(client: Client):
    """The frontend reloaded during a job sees at once which node is executing."""
    me = uuid.uuid4().hex
    prompt_id = await client.submit(endless(), 2, client_id=me)
    async with client.listen(me, 2) as heard:
        await heard.until(lambda: any(data.get("node") == "100" for _, data in heard.of(prompt_id)))
    for gpu in (2, None):
        async with client.listen(me, gpu) as again:
            await again.until(lambda: any(kind == "executing" for kind, _ in again.events))
            assert next(data for kind, data in again.events if kind == "executing")["node"] == "100"
    async with client.listen(me, 1) as elsewhere, client.listen("stranger", 2) as other:
        assert "executing" not in {kind for kind, _ in elsewhere.events + other.events}


async def test_a_stalled_socket_delays_nobody(client: Client):
    """A client that stops reading holds up neither its own lane nor another client."""
    url = client.url.removeprefix("http://")
    host, port = url.split(":")
    stalled = "stalled"
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        f"GET /ws?clientId={stalled} HTTP/1.1\r\nHost: {url}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-TARGET-GPU: 1\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")  # and not a byte more
    me = uuid.uuid4().hex
    wide = {f"{index}": {"class_type": "EmptyImage", "inputs": picture()["1"]["inputs"]} for index in range(300)}
    async with client.listen(me, 1) as heard:
        for _ in range(4):
            prompt = {**picture(), **{f"n{key}": node for key, node in wide.items()}}
            for key in wide:  # many outputs: each progress_state names every node, so the stream is long
                prompt[f"p{key}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"n{key}", 0]}}
            prompt["n0"]["inputs"]["color"] = unlike()
            targets = [f"p{key}" for key in range(60)]
            await client.submit(prompt, 1, client_id=stalled, partial_execution_targets=targets)
            mine = await client.submit(picture(), 1, client_id=me)
            await heard.ended(mine)
    writer.close()


async def test_features_are_negotiated(client: Client):
    """The server answers a client's first message with what it can do; the same stands under /features."""
    async with client.listen("flags", 1, supports_preview_metadata=True) as heard:
        await heard.until(lambda: any(kind == "feature_flags" for kind, _ in heard.events))
        found = next(data for kind, data in heard.events if kind == "feature_flags")
    assert found == await client.get("/features", 1)
    assert found["supports_preview_metadata"] is True
    assert found["max_upload_size"] > 0


async def test_nonsense_on_a_socket_is_passed_over(client: Client):
    """What is no JSON, or not what is expected, does not end the connection."""
    me = uuid.uuid4().hex
    async with client.session.ws_connect(f"{client.at(1)}/ws?clientId={me}", headers=client.headers(1)) as ws:
        for text in ("{", "[]", "null", '"x"', json.dumps({"type": "feature_flags", "data": 3})):
            await ws.send_str(text)
        prompt_id = await client.submit(picture(), 1, client_id=me)
        async with asyncio.timeout(20):
            while True:
                message = await ws.receive()
                assert message.type is aiohttp.WSMsgType.TEXT
                data = json.loads(message.data)
                if data["type"] == "execution_success":
                    assert data["data"]["prompt_id"] == prompt_id
                    break


class contextlib_all:  # noqa: N801 (reads as a function)
    """Many listeners at once."""

    def __init__(self, client: Client, names: list[tuple[str, int]]) -> None:
        self.contexts = [client.listen(name, gpu) for name, gpu in names]

    async def __aenter__(self):
        return [await each.__aenter__() for each in self.contexts]

    async def __aexit__(self, *error: object) -> None:
        for each in self.contexts:
            await each.__aexit__(None, None, None)


async def test_errors_are_told_to_the_client(client: Client):
    """A job that fails ends with execution_error and a history entry that says error; the lane goes on."""
    me = uuid.uuid4().hex
    prompt = picture("x/../../outside")
    async with client.listen(me, 3) as heard:
        prompt_id = await client.submit(prompt, 3, client_id=me)
        await heard.until(lambda: any(kind == "execution_error" for kind, _ in heard.of(prompt_id)))
        (error,) = [data for kind, data in heard.of(prompt_id) if kind == "execution_error"]
        assert (error["node_id"], error["node_type"]) == ("2", "SaveImage")
        assert error["exception_message"]
        assert set(error) >= {"exception_type", "traceback", "executed", "current_inputs", "current_outputs"}
        entry = await client.history(prompt_id)
        assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
        await until(lambda: heard.of(prompt_id)[-1] == ("executing", {"node": None, "prompt_id": prompt_id}))
    await client.done(await client.submit(picture(), 3))
