"""Looks at the queues: by which route, how often, and what they say about a backend that somebody else runs."""

import asyncio
import json

import pytest

from gateway.fleet.ask import AskError, asker
from gateway.fleet.member import Member
from gateway.fleet.poller import COUNTS, PLAIN, QUEUES, Pace, Poller, identify, read_counts, read_models
from tests.doubles.canned import Canned, canned, ok
from tests.doubles.wait import until

DEBUG = ok(b'{"queues": [{"gpu_id": 1, "queued": 2, "running": 1}, {"gpu_id": 0, "queued": 0, "running": 1}]}')
ALL = ok(
    json.dumps(
        {
            "queues": [
                {"gpu_id": 0, "queue_running": [], "queue_pending": [], "running_count": 0, "pending_count": 3},
                {"gpu_id": 1, "queue_running": [], "queue_pending": [], "running_count": 1, "pending_count": 0},
            ],
            "total_running": 1,
            "total_pending": 3,
        }
    ).encode()
)
PROMPT = ok(b'{"exec_info": {"queue_remaining": 7}}')
STATS = ok(b'{"system": {"comfyui_version": "0.3.64"}, "devices": [{"name": "cpu"}]}')
QUICK = Pace(busy=0.01, idle=0.02, absent=0.01)


def a_poller(server: Canned, member: Member, *, judges: bool = False, pace: Pace = QUICK) -> Poller:
    return Poller(member, asker(server.url), lambda: False, judges=judges, pace=pace)


async def test_what_a_lane_holds_is_told_by_those_who_know():
    """Names of model files; a backend that does not say them has said nothing."""
    told = b'{"queues": [{"gpu_id": 1, "queued": 0, "running": 0, "models": ["a", "b"]}, {"gpu_id": 0, "models": 3}]}'
    assert read_models(told, 2) == [None, ("a", "b")]
    member = Member(2)
    member.backend_up()
    lanes = [{"gpu_id": 0, "queued": 0, "running": 0, "models": []}, {"gpu_id": 1, "queued": 0, "running": 0}]
    async with canned({COUNTS: ok(json.dumps({"queues": lanes}).encode())}) as server:
        await a_poller(server, member).step()
    assert [member.lane(0).models, member.lane(1).models] == [(), None]


@pytest.mark.parametrize(
    ("answers", "expected", "asked"),
    [
        ({COUNTS: DEBUG, QUEUES: ALL, PLAIN: PROMPT}, [1, 3], [COUNTS]),
        ({QUEUES: ALL, PLAIN: PROMPT}, [3, 1], [COUNTS, QUEUES]),
        ({PLAIN: PROMPT}, [7, 0], [COUNTS, QUEUES, PLAIN]),
        ({COUNTS: ok(b'{"mode": "single-gpu"}'), PLAIN: PROMPT}, [7, 0], [COUNTS, QUEUES, PLAIN]),
    ],
    ids=["counts", "queues", "plain ComfyUI", "one GPU"],
)
async def test_the_cheapest_route_that_there_is_fills_the_table(
    answers: dict[str, bytes], expected: list[int], asked: list[str]
):
    """Routes are tried from the cheapest, and the one that worked is the only one asked from then on."""
    member = Member(2)
    member.backend_up()
    async with canned(answers) as server:
        poller = a_poller(server, member)
        await poller.step()
        assert [member.lane(0).load, member.lane(1).load] == expected
        assert server.asked == asked
        await poller.step()
        assert server.asked == [*asked, asked[-1]]


async def test_a_backend_with_fewer_lanes_than_ports_gets_no_job_for_the_others():
    """In front of a plain ComfyUI every submission of the front door is for GPU 0."""
    member = Member(4)
    member.backend_up()
    async with canned({PLAIN: PROMPT}) as server:
        await a_poller(server, member).step()
    assert member.width == 1
    assert member.width == 1


async def test_a_failed_look_changes_nothing():
    """What was known stays known, and a backend that we supervise is not judged by it."""
    member = Member(2)
    member.backend_up()
    async with canned({COUNTS: DEBUG}) as server:
        poller = a_poller(server, member)
        await poller.step()
        server.answers.clear()
        await poller.step()
    await poller.step()
    assert (member.up, member.lane(0).load, member.lane(1).load) == (True, 1, 3)


async def test_a_backend_that_is_down_is_not_asked():
    """The supervisor says when there is somebody to ask."""
    async with canned({COUNTS: DEBUG}) as server:
        await a_poller(server, Member(2)).step()
        assert server.asked == []


async def test_somebody_elses_backend_comes_and_goes():
    """Judging, the poller finds it, says what it is, and says when nothing listens any more."""
    member = Member(2)
    async with canned({PLAIN: PROMPT, "/system_stats": STATS}) as server:
        poller = a_poller(server, member, judges=True)
        await poller.step()
        assert (member.up, member.body, member.devices) == (True, "comfyui 0.3.64", ("cpu",))
    await poller.step()
    assert not member.up
    assert "Nothing listens on 127.0.0.1" in member.reason
    assert member.retry_after > 0


async def test_what_is_no_comfyui_does_not_count_as_up():
    """Another program on the port is named as such."""
    member = Member(1)
    async with canned({}) as server:
        await a_poller(server, member, judges=True).step()
    assert not member.up
    assert "no ComfyUI" in member.reason


async def test_identify_is_content_with_little():
    """A backend without usable statistics is still a backend."""
    async with canned({PLAIN: PROMPT, "/system_stats": ok(b"{")}) as server:
        assert await identify(asker(server.url)) == ("comfyui", [])
    with pytest.raises(AskError):
        await identify(asker(server.url))


async def test_a_resting_poller_wakes_for_a_submission():
    """With an hour between idle looks, a reservation brings one soon."""
    member = Member(2)
    member.backend_up()
    answers = {COUNTS: ok(b'{"queues": [{"gpu_id": 0, "queued": 0, "running": 0}]}')}
    async with canned(answers) as server, asyncio.TaskGroup() as tasks:
        poller = tasks.create_task(a_poller(server, member, pace=Pace(busy=0.01, idle=3600)).run())
        await until(lambda: len(server.asked) == 1)
        member.reserve(0).accepted()
        await until(lambda: member.lane(0).load == 0)
        assert len(server.asked) >= 2
        poller.cancel()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"queues": []}', b'{"queues": [{}]}', b'{"queues": 3}', b"<html>", b"\xff"]
)
@pytest.mark.parametrize("target", [COUNTS, QUEUES, PLAIN])
def test_what_is_no_queue_is_not_taken_for_an_empty_one(target: str, body: bytes):
    """Unknown must not look like idle."""
    assert read_counts(target, body, 4) is None


def test_lanes_beyond_ours_are_left_out():
    """A backend with more lanes than the gateway has ports does not break the table."""
    body = b'{"queues": [{"gpu_id": 2, "queued": 1, "running": 1}, {"gpu_id": 0, "queued": 1, "running": 0}, '
    body += b'{"gpu_id": 1, "queued": 0, "running": 0}]}'
    assert read_counts(COUNTS, body, 2) == [(0, 1), (0, 0)]


async def test_a_look_sees_which_lane_takes_no_jobs():
    """The backend says so beside the counts, and that it is over as well."""
    fleet = Member(2)
    fleet.backend_up()
    body = b'{"queues": [{"gpu_id": 0, "queued": 0, "running": 0, "faulted": "it broke"}, '
    body += b'{"gpu_id": 1, "queued": 0, "running": 0}]}'
    async with canned({COUNTS: ok(body)}) as server:
        poller = a_poller(server, fleet)
        await poller.step()
        assert fleet.faults == ["GPU 0 takes no jobs: it broke."]
        server.answers[COUNTS] = DEBUG
        await poller.step()
        assert fleet.faults == []


async def test_a_backend_whose_lanes_wait_for_each_other_says_so_where_that_is_wanted():
    """Auto mode: its own words, as long as they hold."""
    member = Member(1)
    member.backend_up()
    bound = b'{"queues": [{"gpu_id": 0, "queued": 0, "running": 0}], "issuing": {"verdict": "%b", "advice": "per-gpu"}}'
    async with canned({COUNTS: ok(bound % b"gil-bound")}) as server:
        await a_poller(server, member).step()
        assert member.advice == ""
        poller = Poller(member, asker(server.url), lambda: False, advises=True)
        await poller.step()
        assert member.advice == "per-gpu"
        server.answers[COUNTS] = ok(bound % b"fine")
        await poller.step()
        assert member.advice == ""


async def test_what_lanes_ask_of_python_is_kept_with_each_look():
    """As the backend says it; one that says nothing of it has nothing measured."""
    member = Member(1)
    member.backend_up()
    said = b'{"queues": [{"gpu_id": 0, "queued": 0, "running": 0}]%b}'
    issuing = b', "issuing": {"demand": 0.75, "lanes": [{"calls": 3}, {"calls": 4}]}'
    async with canned({COUNTS: ok(said % issuing)}) as server:
        poller = a_poller(server, member)
        await poller.step()
        assert (member.demand, member.calls) == (0.75, 7)
        server.answers[COUNTS] = ok(said % b', "issuing": {"demand": null, "lanes": null}')
        await poller.step()
        assert (member.demand, member.calls) == (None, 0)
        server.answers[COUNTS] = ok(said % b"")
        await poller.step()
        assert (member.demand, member.calls) == (None, 0)


async def test_looks_that_fail_put_a_backend_out_until_some_are_good():
    """As many bad ones in a row, as many good ones; it stays up all the time."""
    member = Member(1, out_after=2, back_after=2)
    changes: list[str] = []
    member.on_change = lambda each: changes.append(each.state)
    member.backend_up()
    async with canned({COUNTS: ok(b"{}")}) as server:
        poller = a_poller(server, member)
        for expected in ("up", "out", "out"):
            await poller.step()
            assert member.state == expected
        server.answers[COUNTS] = DEBUG
        for expected in ("out", "up"):
            await poller.step()
            assert member.state == expected
    assert changes == ["up", "out", "up"]
