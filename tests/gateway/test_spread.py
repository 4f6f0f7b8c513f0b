"""Several backends behind one gateway: each request goes where it belongs, and answers show all of them as one."""

import json
from pathlib import Path

import pytest

from tests.doubles.several import Several, several
from tests.doubles.wait import until


@pytest.fixture(params=["journal", "no journal"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """With a journal and without one."""
    return tmp_path if request.param == "journal" else None


async def where(here: Several, gpu: int | None) -> str:
    return (await here.get("/object_info", gpu)).body.decode()


async def test_each_port_leads_to_its_backend_which_counts_from_nought(folder: Path | None):
    """GPU 3 is the second backend's GPU 0 and so on; what users see keeps counting through."""
    async with several(folder, (3, 2)) as here:
        found = [await where(here, gpu) for gpu in range(5)]
        assert found == ["site0 0", "site0 1", "site0 2", "site1 0", "site1 1"]


async def test_submissions_go_to_the_lane_of_their_port(folder: Path | None):
    """Also over the gateway's prefix; each backend has its own jobs."""
    async with several(folder, (1, 1)) as here:
        await here.submit("a", 0)
        await here.submit("b", 1)
        assert [each["prompt_id"] for each in here.sites[0].pending] == ["a"]
        assert [each["prompt_id"] for each in here.sites[1].pending] == ["b"]


async def test_front_door_jobs_are_spread_over_all_backends(folder: Path | None):
    """Least busy first, whichever backend that is."""
    async with several(folder, (1, 1)) as here:
        for number in range(4):
            await here.submit(f"job{number}")
        assert [len(site.pending) for site in here.sites] == [2, 2]


async def test_where_files_are_not_shared_a_client_stays_with_one_backend(folder: Path | None):
    """Its uploads, its jobs and its reads meet there, over all of its lanes."""
    async with several(folder, (2, 2), stay="stick") as here:
        home = (await where(here, None)).split()[0]
        for number in range(4):
            await here.submit(f"job{number}")
        counts = {site.name: len(site.pending) for site in here.sites}
        assert counts.pop(home) == 4
        assert list(counts.values()) == [0]


async def test_reads_of_the_front_door_stay_with_one_backend_and_move_when_it_goes(folder: Path | None):
    """The same address gets the same backend; when that is away, another, and afterwards the first again."""
    async with several(folder) as here:
        first = {await where(here, None) for _ in range(4)}
        assert len(first) == 1
        home = next(site for site in here.sites if site.name == first.copy().pop().strip())
        index = here.sites.index(home)
        here.dies(index)
        assert (await where(here, None)).strip() != home.name
        here.comes(index, "again")
        assert (await where(here, None)).strip() == home.name


async def test_queues_and_counts_are_put_together(folder: Path | None):
    """The front door's /queue, /prompt and /queue/all show what waits on every backend."""
    async with several(folder, (1, 1)) as here:
        await here.submit("a", 0)
        await here.submit("b", 1)
        here.sites[1].start()
        queue = json.loads((await here.get("/queue")).body)
        assert [item[1] for item in queue["queue_pending"]] == ["a"]
        assert [item[1] for item in queue["queue_running"]] == ["b"]
        assert json.loads((await here.get("/api/prompt")).body) == {"exec_info": {"queue_remaining": 2}}
        whole = json.loads((await here.get("/queue/all", 1)).body)
        assert [(each["gpu_id"], each["running_count"], each["pending_count"]) for each in whole["queues"]] == [
            (0, 0, 1), (1, 1, 0),
        ]  # fmt: skip
        assert (whole["total_running"], whole["total_pending"]) == (1, 1)


async def test_history_is_one_on_every_port(folder: Path | None):
    """All entries wherever one asks, and each by its id."""
    async with several(folder, (1, 1)) as here:
        for number in range(2):
            await here.submit(f"job{number}", number)
            here.sites[number].finish(here.sites[number].start())
        for gpu in (None, 0, 1):
            assert set(json.loads((await here.get("/history", gpu)).body)) == {"job0", "job1"}
            assert list(json.loads((await here.get("/history/job1", gpu)).body)) == ["job1"]
            assert json.loads((await here.get("/history/nobody", gpu)).body) == {}


async def test_a_backend_that_is_away_keeps_nobody_from_the_others(folder: Path | None):
    """What can be shown is shown; its own port says why it is not there."""
    async with several(folder, (1, 1)) as here:
        await here.submit("b", 1)
        here.dies(0)
        assert [item[1] for item in json.loads((await here.get("/queue")).body)["queue_pending"]] == ["b"]
        away = await here.get("/object_info", 0)
        assert away.status == 503
        assert b"it died" in away.body
        assert (await here.get("/object_info", 1)).status == 200
        answer = await here.submit("c")
        assert answer["prompt_id"] == "c"
        assert len(here.sites[1].pending) == 2


async def test_files_are_looked_for_where_they_can_be(folder: Path | None):
    """A file that only one backend has is found from the front door; one that nobody has is 404."""
    async with several(folder, (1, 1)) as here:
        for index in range(2):
            target = f"/view?filename={index}.png&type=temp"
            here.sites[index].files.add(target)
            assert (await here.get(target)).body.decode() == f"site{index}"
        assert (await here.get("/view?filename=none.png")).status == 404


async def test_a_file_of_a_known_job_is_asked_of_its_backend_at_once(tmp_path: Path):
    """The journal knows who made it: one request, to that backend, from any port."""
    async with several(tmp_path, (1, 1)) as here:
        await here.submit("a", 1)
        here.sites[1].finish(here.sites[1].start())
        assert here.desk is not None
        journal = here.desk.journal
        await until(lambda: (record := journal.get("a")) is not None and record.ended)
        target = "/view?filename=a.png"
        for site in here.sites:
            site.files.add(target)
        for gpu in (None, 0):
            before = [len(backend.seen) for backend in here.backends]
            assert (await here.get(target, gpu)).body == b"site1"
            views = [[seen.target for seen in backend.seen[count:] if b"/view" in seen.target]
                     for backend, count in zip(here.backends, before, strict=True)]  # fmt: skip
            assert views == [[], [target.encode()]]


async def test_an_interrupt_by_id_finds_the_job_and_touches_nobody_else(tmp_path: Path):
    """From any port; without an id it means what runs on this port, and at the front door everything."""
    async with several(tmp_path, (1, 1)) as here:
        await here.submit("a", 1)
        here.sites[1].start()
        await here.post("/interrupt", {"prompt_id": "a"}, 0)
        assert here.sites[0].told == []
        assert here.sites[1].told == [("/interrupt", {"prompt_id": "a"})]
        await here.post("/interrupt", {}, 0)
        assert here.sites[0].told == [("/interrupt", {})]
        assert len(here.sites[1].told) == 1


async def test_what_frees_memory_at_the_front_door_reaches_every_backend(folder: Path | None):
    """On a GPU's port only its own."""
    async with several(folder, (1, 1)) as here:
        await here.post("/free", {"unload_models": True})
        assert [len(site.told) for site in here.sites] == [1, 1]
        await here.post("/free", {"unload_models": True}, 1)
        assert [len(site.told) for site in here.sites] == [1, 2]
