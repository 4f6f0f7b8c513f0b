"""Submissions: in the journal before the answer, under one id, once."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.doubles.jobs_house import house
from tests.doubles.wait import until


async def test_a_submission_gets_an_id_and_is_written_down_before_its_answer(tmp_path: Path):
    """While the backend has not answered yet, the journal has the job; the answer is the backend's own."""
    async with house(tmp_path) as here:
        here.comfy.hold = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(here.post("/api/prompt?x=1", {"prompt": {}, "client_id": "me"}, gpu=2), name="c")
            await until(here.states)
            (record,) = here.desk.journal.unfinished()
            assert await here.desk.journal.store.body(record.id) is not None
            assert not asked.done()
            here.comfy.hold.set()
            got = await asked
        assert json.loads(got.body) == {"prompt_id": record.id, "number": 1, "node_errors": {}}
        assert got.all("x-theirs") == [b"1"]
        (sent,) = (seen for seen in here.backend.seen if seen.method == b"POST")
        assert sent.target == b"/api/prompt?x=1"
        assert sent.all("x-target-gpu") == [b"2"]
        assert json.loads(sent.body) == {"prompt": {}, "client_id": "me", "prompt_id": record.id}
        record = here.record(record.id)
        assert (record.gpu, record.port, record.client_id, record.attempts) == (2, "gpu2", "me", 1)


async def test_two_with_one_id_at_once_run_once(tmp_path: Path):
    """Both get the first one's answer."""
    async with house(tmp_path) as here:
        here.comfy.hold = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(here.submit("same"), name="client") for _ in range(2)]
            await until(lambda: len(here.server._proxy.tasks) == 2)
            here.comfy.hold.set()
        answers = [json.loads(each.result().body) for each in both]
        assert answers[0] == answers[1]
        assert len(here.comfy.pending) == 1
        assert json.loads((await here.submit("same")).body) == answers[0]
        assert len(here.comfy.pending) == 1


async def test_a_key_works_like_an_id(tmp_path: Path):
    """Same key and body: the first answer. Another body: 422, and nothing happens."""
    async with house(tmp_path) as here:
        first = await here.post("/prompt", {"prompt": {}}, "Idempotency-Key: k")
        second = await here.post("/prompt", {"prompt": {}}, "Idempotency-Key: k", gpu=1)
        assert json.loads(first.body) == json.loads(second.body)
        third = await here.post("/prompt", {"prompt": {"1": {}}}, "Idempotency-Key: k")
        assert (third.status, third.error["type"]) == (422, "idempotency_key_reuse")
        assert len(here.comfy.pending) == 1


async def test_a_refused_submission_was_none(tmp_path: Path):
    """The backend's 400 goes back as it is, and the id and the key can be used again."""
    async with house(tmp_path) as here:
        got = await here.post("/prompt", {"prompt_id": "x"}, "Idempotency-Key: k")
        assert (got.status, got.error["type"] if "details" in got.body.decode() else "no_prompt") == (400, "no_prompt")
        assert here.states() == {}
        again = await here.post("/prompt", {"prompt_id": "x", "prompt": {}}, "Idempotency-Key: k")
        assert again.status == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b"{'a': 1}"])
async def test_what_is_no_object_goes_to_the_backend_as_it_stands(tmp_path: Path, body: bytes):
    """It says itself what is wrong."""
    async with house(tmp_path) as here:
        got = await here.post("/prompt", body)
        assert got.status == 400
        assert here.backend.seen[-1].body == body
        assert here.states() == {}


async def test_a_compressed_submission_is_refused(tmp_path: Path):
    """415: the journal could not read it, and would miss a job."""
    async with house(tmp_path) as here:
        got = await here.post("/prompt", {"prompt": {}}, "Content-Encoding: gzip")
        assert (got.status, got.error["type"]) == (415, "unsupported_encoding")
        assert here.comfy.pending == []


async def test_a_body_in_chunks_after_100_continue(tmp_path: Path):
    """The gateway itself invites the body, and takes it however it is framed."""
    async with house(tmp_path) as here, here.client() as client:
        await client.send(
            b"POST /prompt HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await client.head()).status == 100
        await client.send(b"9\r\n{\"prompt\"\r\n", b"4\r\n: {}\r\n", b"1\r\n}\r\n0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert len(here.comfy.pending) == 1


async def test_a_client_that_leaves_has_submitted_nevertheless(tmp_path: Path):
    """Its job is in the journal and goes its way."""
    async with house(tmp_path) as here:
        here.comfy.hold = asyncio.Event()
        async with here.client() as client:
            body = b'{"prompt": {}, "prompt_id": "left"}'
            await client.send(b"POST /prompt HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await until(here.states)
            client.reset()
        await until(lambda: not here.server._proxy.running)
        here.comfy.hold.set()
        await until(lambda: here.record("left").attempts == 1)


async def test_with_the_backend_away_a_submission_is_refused_or_kept(tmp_path: Path):
    """503 by default; where configured so, it is promised, and sent in order when the backend comes."""
    async with house(tmp_path / "a", up="") as here:
        got = await here.post("/prompt", {"prompt": {}})
        assert (got.status, got.error["type"]) == (503, "backend_unavailable")
        assert here.states() == {}
    async with house(tmp_path / "b", up="", accept_while_down=True) as here:
        for job in ("one", "two"):
            told = json.loads((await here.submit(job, gpu=3)).body)
            assert (told["prompt_id"], told["gpu_id"], told["node_errors"]) == (job, 3, {})
        here.backend_comes("late")
        await until(lambda: here.fleet.up)
        assert [each["prompt_id"] for each in here.comfy.pending] == ["one", "two"]
        assert json.loads((await here.submit("one")).body)["number"] == 1


async def test_a_gpu_that_takes_no_jobs_refuses_its_own(tmp_path: Path):
    """Only submissions for it, with the reason; the history is told as ever."""
    async with house(tmp_path / "a") as here:
        here.fleet.members[0].look_ends(here.fleet.members[0].look_begins(), [(0, 0)] * 4, ["", "it broke", "", ""])
        got = await here.post("/prompt", {"prompt": {}}, gpu=1)
        assert (got.status, got.error["details"]) == (503, "GPU 1 takes no jobs: it broke.")
        assert here.states() == {}
        for target in ("/history", "/api/history/x", "/view?filename=a.png"):
            assert (await here.get(target, gpu=1)).status == 200
        for target in ("/", "/prompt", "/views", "/object_info"):
            got = await here.get(target, gpu=1)
            assert (got.status, got.all("retry-after")) == (503, [b"5"])
            assert got.error["message"] == "GPU 1 takes no jobs: it broke."
        await here.submit("well", gpu=0)


async def test_what_was_promised_survives_a_gpu_that_takes_no_jobs(tmp_path: Path):
    """That the lane is broken says nothing about the job: it is sent when a backend takes it."""
    async with house(tmp_path / "b", up="", accept_while_down=True) as here:
        await here.submit("kept", gpu=1)
        here.comfy.faulted = True
        here.backend_comes("broken")
        await until(lambda: b"POST" in [seen.method for seen in here.backend.seen] and not here.record("kept").boot)
        here.backend_dies()
        assert here.states() == {"kept": "queued"}
        here.comfy.faulted = False
        here.backend_comes("well")
        await until(lambda: here.comfy.pending)
        assert [each["prompt_id"] for each in here.comfy.pending] == ["kept"]
        await until(lambda: here.record("kept").boot == "well")
        assert here.record("kept").crashes == 0


async def test_an_answer_that_the_backends_death_took_away_comes_after_it(tmp_path: Path):
    """The client waits, the next backend takes the job, and its answer is the client's."""
    async with house(tmp_path) as here:
        here.comfy.hang_up = True
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(here.submit("torn"), name="client")
            await until(here.states)
            here.backend_dies()
            here.comfy.hang_up = False
            here.backend_comes("boot-2")
            got = await asked
        assert json.loads(got.body)["prompt_id"] == "torn"
        assert [each["prompt_id"] for each in here.comfy.pending] == ["torn"]
        assert here.record("torn").boot == "boot-2"


async def test_a_broken_connection_to_a_living_backend_is_made_up_for(tmp_path: Path):
    """Nobody knows whether it took the job: it is looked for, and sent again when it is not there."""
    async with house(tmp_path) as here:
        here.comfy.hang_up = True
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(here.submit("torn"), name="client")
            await until(lambda: any(seen.method == b"POST" for seen in here.backend.seen))
            here.comfy.hang_up = False
            assert (await asked).status == 200
        assert [each["prompt_id"] for each in here.comfy.pending] == ["torn"]
        assert here.states() == {"torn": "queued"}


async def test_an_id_that_names_nothing_is_a_clear_400(tmp_path: Path):
    """And changes nothing."""
    async with house(tmp_path) as here:
        got = await here.post("/prompt", {"prompt": {}, "prompt_id": ""})
        assert (got.status, got.error["type"]) == (400, "bad_request")
        assert here.comfy.pending == []
