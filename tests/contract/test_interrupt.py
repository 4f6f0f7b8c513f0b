"""Interrupting stops exactly what was meant."""

import asyncio
import uuid

from tests.contract.client import Client, endless, picture, sleeper
from tests.contract.conftest import GPUS


async def outcome(client: Client, prompt_id: str) -> str:
    """The last of the job's own messages."""
    entry = await client.history(prompt_id)
    found: str = entry["status"]["messages"][-1][0]
    return found


async def long_job(client: Client, gpu: int) -> str:
    prompt_id = await client.submit(endless(), gpu)
    await client.running(prompt_id)
    return prompt_id


async def test_by_id_from_any_port(client: Client):
    """A job is stopped by its id wherever it runs, and no other is touched."""
    others = [await long_job(client, gpu) for gpu in (0, 2, 3)]
    for port in (1, 3, None):
        target = await long_job(client, 1)
        status, _ = await client.post("/interrupt", {"prompt_id": target}, port)
        assert status == 200
        assert await outcome(client, target) == "execution_interrupted"
    running = {item[1] for item in (await client.get("/queue"))["queue_running"]}
    assert running == set(others)


async def test_many_targeted_interrupts(client: Client):
    """Twenty in a row while the other lanes work: each stops its own job and nothing else."""
    others = [await long_job(client, gpu) for gpu in (0, 2)]
    for _ in range(20):
        target = await long_job(client, 1)
        await client.post("/interrupt", {"prompt_id": target}, 1)
        assert await outcome(client, target) == "execution_interrupted"
    assert {item[1] for item in (await client.get("/queue"))["queue_running"]} == set(others)


async def test_without_an_id_that_lane(client: Client):
    """A GPU's port stops what runs on that GPU; the front door stops what runs anywhere."""
    ids = [await long_job(client, gpu) for gpu in range(GPUS)]
    async with client.session.post(f"{client.at(2)}/interrupt", headers=client.headers(2)) as answer:  # no body at all
        assert answer.status == 200
    assert await outcome(client, ids[2]) == "execution_interrupted"
    assert {item[1] for item in (await client.get("/queue"))["queue_running"]} == {ids[0], ids[1], ids[3]}
    if client.behind:
        # The gateway's front door stops what the caller itself has running, and these came in by GPUs' ports.
        for each in ids:
            await client.post("/interrupt", {"prompt_id": each})
    else:
        await client.post("/interrupt", {})
    for each in ids:
        assert await outcome(client, each) == "execution_interrupted"


async def test_an_ended_job_takes_nobody_along(client: Client):
    """An interrupt for a job that has just ended, or never was, stops nobody."""
    ended = await client.submit(picture(), 1)
    await client.done(ended)
    follower = await long_job(client, 1)
    for gone in (ended, "never-was"):
        status, _ = await client.post("/interrupt", {"prompt_id": gone}, 1)
        assert status == 200
    await asyncio.sleep(0)
    assert {item[1] for item in (await client.get("/queue", 1))["queue_running"]} == {follower}


async def test_a_race_with_the_end_never_stops_the_next(client: Client):
    """Interrupts thrown at short jobs as they end: whatever becomes of those, every following job succeeds."""
    for _ in range(15):
        short = await client.submit(sleeper(0.03), 1)
        follower = await client.submit(picture(), 1)

        await asyncio.gather(*(client.post("/interrupt", {"prompt_id": short}, 1) for _ in range(4)))
        await client.done(follower)


async def test_a_waiting_job_is_not_interrupted(client: Client):
    """Its id stops nothing while it waits; it runs when its turn comes."""
    client.directly("there an interrupt by id cancels a waiting job, too")
    running = await long_job(client, 1)
    waiting = await client.submit(picture(), 1)
    await client.post("/interrupt", {"prompt_id": waiting}, 1)
    await client.post("/interrupt", {"prompt_id": running}, 1)
    assert await outcome(client, running) == "execution_interrupted"
    await client.done(waiting)


async def test_the_client_hears_it(client: Client):
    """execution_interrupted names the node, then executing with no node; the history says error."""
    me = uuid.uuid4().hex
    async with client.listen(me, 3) as heard:
        prompt_id = await client.submit(endless(), 3, client_id=me)
        await heard.until(lambda: any(kind == "progress" for kind, _ in heard.of(prompt_id)))
        await client.post("/interrupt", {}, 3)
        await heard.ended(prompt_id)
    (data,) = [data for kind, data in heard.of(prompt_id) if kind == "execution_interrupted"]
    assert data["node_type"] == "TestSleep"
    assert "1" in data["executed"]
    entry = await client.history(prompt_id)
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
