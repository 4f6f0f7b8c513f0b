"""What the gateway asks for on behalf of jobs that wait with it: a verdict without a job, and a count."""

import uuid

import pytest

from tests.contract.client import Client, picture


async def test_a_submission_is_judged_and_not_taken(client: Client):
    """The answer is that of ``POST /prompt``, and no queue, history or client hears of it."""
    job = str(uuid.uuid4())
    body = {"prompt": picture(), "prompt_id": job, "client_id": "judge"}
    async with client.listen("judge") as listener:
        status, answer = await client.post("/prompt/check", body)
        assert (status, answer["prompt_id"], answer["node_errors"]) == (200, job, {})
        wrong = picture()
        wrong["2"]["inputs"]["images"] = ["1", 7]
        for prompt in ({}, {"1": {"class_type": "NoSuchNode", "inputs": {}}}, wrong):
            checked = await client.post("/prompt/check", {**body, "prompt": prompt})
            assert checked == await client.post("/prompt", {**body, "prompt": prompt})
            assert checked[0] == 400
        assert await client.get("/queue") == {"queue_running": [], "queue_pending": []}
        assert await client.get(f"/history/{job}") == {}
        # It may be submitted afterwards, and runs.
        assert (await client.post("/prompt", body))[0] == 200
        await listener.ended(job)


async def test_jobs_that_wait_elsewhere_count_for_their_client(client: Client):
    """On a socket that names no GPU, for that client alone; a GPU's own socket counts what the GPU has."""
    client.directly("only the gateway itself may send the count")
    async with client.listen("waits") as mine, client.listen("else") as other, client.listen("waits", gpu=1) as gpu:
        assert (await client.post("/queue/waiting", {"waiting": {"waits": 2, "gone": 1}}))[0] == 200
        await mine.until(lambda: mine.remaining()[-1:] == [2])
        assert (await client.post("/queue/waiting", {"waiting": {"waits": 1, "": 1}}))[0] == 200
        await other.until(lambda: other.remaining()[-1:] == [1])
        await mine.until(lambda: mine.remaining()[-1:] == [2])
        assert (await client.post("/queue/waiting", {"waiting": {"waits": 0, "": 0, "gone": 0}}))[0] == 200
        await mine.until(lambda: mine.remaining()[-1:] == [0])
        assert set(gpu.remaining()) == {0}


@pytest.mark.parametrize("sent", [{}, [], {"waiting": 3}, {"waiting": {"x": -1}}, {"waiting": {"x": "1"}}])
async def test_what_is_no_count_is_refused(client: Client, sent: object):
    """400, and nothing has changed."""
    client.directly("only the gateway itself may send the count")
    status, answer = await client.post("/queue/waiting", sent)
    assert status == 400
    assert answer["error"]["message"]
