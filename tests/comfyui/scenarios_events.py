"""Scenarios of events: who hears what, while every lane works.

See ``scenarios`` for what a scenario is.
"""

import itertools
import socket
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

from tests.comfyui import workflows
from tests.comfyui.scenarios import Patience, Verdict, ended_as, is_running
from tests.comfyui.wire import JOB_LIMIT, Event, Lane, Listener, outcome


def isolation(
    lanes: Sequence[Lane], *, steps: int = 8, seconds: float = JOB_LIMIT, throttled: bool = False,
) -> Verdict:
    """One sampling job per lane at once: every client sees all of its own job and nothing of the others'.

    ``throttled`` says that this ComfyUI itself drops progress that comes too fast, all but the last.
    """
    verdict, patience = Verdict(), Patience(seconds)
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        jobs = [lane.submit(workflows.sampled(50 + lane.gpu, steps=steps, prefix="isolation"), listener.client)
                for lane, listener in zip(lanes, listeners, strict=True)]
        for lane, listener, job in zip(lanes, listeners, jobs, strict=True):
            entry = {}
            try:
                entry = lane.finished(job, patience.left())
                listener.idle_after(job, patience.left())
            except (TimeoutError, ConnectionError) as error:
                verdict.problems.append(f"GPU {lane.gpu}: {error}")
            verdict.expect(bool(entry) and outcome(entry) == "success", f"GPU {lane.gpu}: not finished")
            _own_events(verdict, listener, job, steps, throttled=throttled)
        for lane in lanes:
            for job in jobs:
                verdict.expect(bool(lane.history(job)), f"history of {job} is not on GPU {lane.gpu}")
    return verdict


def _own_events(verdict: Verdict, listener: Listener, job: str, steps: int, *, throttled: bool) -> None:
    """All events of the own job, in ComfyUI's order, and no event of another."""
    name = f"GPU {listener.lane.gpu}"
    verdict.expect(listener.jobs() == {job}, f"{name} heard of {len(listener.jobs() - {job})} foreign jobs")
    progress = [event.data["value"] for event in listener.of("progress", job) if event.data["node"] == "5"]
    whole = sorted(set(progress)) if throttled and progress[-1:] == [steps] else list(range(1, steps + 1))
    verdict.expect(progress == whole, f"{name} got progress {progress} of {steps} steps")
    previews = len(listener.of("preview"))
    verdict.expect(previews == len(whole), f"{name} got {previews} previews of {len(whole)}")
    verdict.counts["events"] += len(listener.events)
    verdict.counts["progress"] += len(progress)
    kinds = [event.kind for event in listener.events if event.data.get("prompt_id") == job]
    for kind in ("execution_start", "execution_cached", "executed", "execution_success"):
        verdict.expect(kinds.count(kind) == 1, f"{name} got {kinds.count(kind)} {kind}")
    verdict.expect("progress_state" in kinds, f"{name} got no progress_state")
    order = [kinds.index(kind) for kind in ("execution_start", "execution_cached", "executed", "execution_success")
             if kind in kinds]
    verdict.expect(order == sorted(order), f"{name} got its events out of order")


def helper_threads(lanes: Sequence[Lane], *, pool: bool, steps: int = 10, seconds: float = 60) -> Verdict:
    """Progress from threads that nodes start reaches the own client, under the own job's name."""
    verdict, patience = Verdict(), Patience(seconds)
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        prompts = [{"1": workflows.node("ProofHelperThreadProgress", steps=steps, pool=pool, tag=uuid.uuid4().hex)}
                   for _ in lanes]
        jobs = [lane.submit(prompt, listener.client)
                for lane, prompt, listener in zip(lanes, prompts, listeners, strict=True)]
        for lane, listener, job in zip(lanes, listeners, jobs, strict=True):
            try:
                lane.finished(job, patience.left())
                listener.idle_after(job, patience.left())
            except (TimeoutError, ConnectionError) as error:
                verdict.problems.append(f"GPU {lane.gpu}: {error}")
            got = len(listener.of("progress", job))
            verdict.counts["progress"] += got
            verdict.expect(got == steps, f"GPU {lane.gpu} got {got} of {steps} progress events")
            verdict.expect(listener.jobs() == {job}, f"GPU {lane.gpu} heard of other jobs than its own")
    return verdict


def served_progress(lane: Lane, *, steps: int = 5, seconds: float = 60) -> Verdict:
    """Two jobs after another hand their work to one thread: each hears its own progress under its own name."""
    verdict, patience = Verdict(), Patience(seconds)
    for name in ("import", uuid.uuid4().hex):
        for turn in (1, 2):
            with Listener(lane) as listener:
                prompt = {"1": workflows.node("ProofServedProgress", steps=steps, name=name, tag=uuid.uuid4().hex)}
                job = lane.submit(prompt, listener.client)
                try:
                    lane.finished(job, patience.left())
                    listener.idle_after(job, patience.left())
                except (TimeoutError, ConnectionError) as error:
                    verdict.problems.append(f"{name}, job {turn}: {error}")
                told = [event.data for event in listener.of("progress")]
                verdict.counts["progress"] += len(told)
                wanted = [(job, "1")] * steps
                given = [(each["prompt_id"], each["node"]) for each in told]
                verdict.expect(given == wanted, f"{name}, job {turn}: progress of {given}")
    return verdict


def same_client(first: Lane, second: Lane, *, seconds: float = 30) -> Verdict:
    """One ``clientId`` on two ports is two clients, also after one of them has gone."""
    verdict, client = Verdict(), uuid.uuid4().hex
    with Listener(second, client) as stays:
        with Listener(first, client) as goes:
            _each_its_own(verdict, [(first, goes), (second, stays)], seconds)
        _each_its_own(verdict, [(second, stays)], seconds)
    return verdict


def replaced_socket(lane: Lane) -> Verdict:
    """A second socket with the first one's ``clientId`` on the same port hears everything, the first nothing more.

    The first stays open and its pings are answered: closed, its client would come back and displace the second.
    """
    verdict, client = Verdict(), uuid.uuid4().hex
    with Listener(lane, client) as old, Listener(lane, client) as new:
        job = lane.submit(workflows.sleeping(1.3, tag=uuid.uuid4().hex), client)
        new.idle_after(job, 30)
        verdict.counts["progress"] += len(new.of("progress", job))
        verdict.expect(len(new.of("progress", job)) == 10, "the newer socket missed progress")
        verdict.expect(not old.jobs(), "the older socket heard of the job")
        try:
            old.ping(30)
        except (TimeoutError, ConnectionError) as error:
            verdict.problems.append(f"the older socket did not stay: {error}")
    return verdict


def _each_its_own(verdict: Verdict, both: Sequence[tuple[Lane, Listener]], seconds: float) -> None:
    jobs = [lane.submit(workflows.sleeping(1.3, tag=uuid.uuid4().hex), listener.client) for lane, listener in both]
    for (lane, listener), job in zip(both, jobs, strict=True):
        verdict.counts["jobs"] += 1
        try:
            lane.finished(job, seconds)
            listener.idle_after(job, 5)
        except (TimeoutError, ConnectionError) as error:
            verdict.problems.append(f"GPU {lane.gpu}: {error}")
        got = len(listener.of("progress", job))
        verdict.expect(got == 10, f"GPU {lane.gpu} got {got} of 10 progress events")
        foreign = set(jobs) - {job}
        verdict.expect(not listener.jobs() & foreign, f"GPU {lane.gpu} heard of the other port's job")


def broadcasts(lanes: Sequence[Lane], *, seconds: float = 30) -> Verdict:
    """What a running node sends to nobody in particular reaches that GPU's clients, every one, and no others."""
    verdict = Verdict()
    with ExitStack() as open_:
        listeners = [[open_.enter_context(Listener(lane)) for _ in range(2)] for lane in lanes]
        for lane, own in zip(lanes, listeners, strict=True):
            tag = uuid.uuid4().hex
            text = lane.submit(workflows.sized(lane.gpu), own[0].client)
            told = lane.submit({"1": workflows.node("ProofBroadcast", tag=tag, size=10, count=3)}, own[0].client)
            for job in (told, text):
                ended = ended_as(lane, job, seconds)
                verdict.expect(ended == "success", f"GPU {lane.gpu}: ended as {ended}")
            for other, theirs in zip(lanes, listeners, strict=True):
                for listener in theirs:
                    _heard(verdict, listener, tag, mine=other is lane)
            texts = [len(listener.of("text")) for listener in itertools.chain(*listeners)]
            verdict.counts["texts"] += sum(texts)
            expected = [index // 2 <= lane.gpu for index in range(len(texts))]
            verdict.expect([bool(text) for text in texts] == expected, f"after GPU {lane.gpu}'s texts: {texts}")
    return verdict


def _heard(verdict: Verdict, listener: Listener, tag: str, *, mine: bool) -> None:
    def tagged(event: Event) -> bool:
        return event.kind == "proof.broadcast" and event.data["tag"] == tag

    if mine:
        try:
            listener.wait(lambda event: tagged(event) and event.data["index"] == 2, 5)
        except TimeoutError as error:
            verdict.problems.append(f"GPU {listener.lane.gpu}: {error}")
    got = sum(1 for event in list(listener.events) if tagged(event))
    verdict.counts["broadcasts"] += got
    verdict.expect(got == (3 if mine else 0), f"GPU {listener.lane.gpu} got {got} of another GPU's broadcasts")


def reconnect(lanes: Sequence[Lane]) -> Verdict:
    """Clients leave and come back while their jobs run: each is told its node and hears the end."""
    verdict, clients = Verdict(), [uuid.uuid4().hex for _ in lanes]
    jobs = []
    for lane, client in zip(lanes, clients, strict=True):
        with Listener(lane, client) as listener:
            prompt = {f"{lane.gpu}0": workflows.node("ProofSleep", seconds=60.0, steps=3000, tag=uuid.uuid4().hex)}
            jobs.append(lane.submit(prompt, client))
            listener.wait(is_running(jobs[-1]))
    for lane, client, job in zip(lanes, clients, jobs, strict=True):
        with Listener(lane, client) as listener:
            verdict.counts["clients"] += 1
            try:
                told = listener.wait(lambda event: event.kind == "executing", 10)
                node = told.data.get("node")
                verdict.expect(node == f"{lane.gpu}0", f"GPU {lane.gpu}: told that node {node} runs")
                listener.wait(is_running(job), 10)
                lane.interrupt(job)
                listener.ended(job, 30)
            except (TimeoutError, ConnectionError) as error:
                verdict.problems.append(f"GPU {lane.gpu}: {error}")
                lane.interrupt(job)
            foreign = listener.jobs() - {job}
            verdict.expect(not foreign, f"GPU {lane.gpu} heard of {len(foreign)} other jobs")
    return verdict


def deaf(lane: Lane) -> socket.socket:
    """A WebSocket client of this lane that will not read another byte; its window is small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((lane.host.split(":")[0], int(lane.host.split(":")[1])))
    extra = "".join(f"{name}: {value}\r\n" for name, value in lane.headers.items())
    client.sendall(
        f"GET /ws?clientId={uuid.uuid4().hex} HTTP/1.1\r\nHost: {lane.host}\r\nUpgrade: websocket\r\n{extra}"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
    answer = client.recv(200)
    assert b" 101 " in answer, answer
    return client


def stalled_socket(lanes: Sequence[Lane], *, count: int = 300, size: int = 100_000) -> Verdict:
    """While one client of GPU 0 does not read, 30 MB of events for its GPU reach the others, and all jobs end."""
    verdict = Verdict()
    with ExitStack() as open_:
        stalled = open_.enter_context(deaf(lanes[0]))
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        loud = workflows.node("ProofBroadcast", tag=uuid.uuid4().hex, size=size, count=count)
        jobs = [lanes[0].submit({"1": loud}, listeners[0].client)]
        jobs += [lane.submit(workflows.sleeping(0.2, tag=uuid.uuid4().hex), listener.client)
                 for lane, listener in zip(lanes[1:], listeners[1:], strict=True)]
        jobs.append(lanes[0].submit(workflows.sleeping(0.2, tag=uuid.uuid4().hex), listeners[0].client))
        for listener, job in zip([*listeners, listeners[0]], jobs, strict=True):
            try:
                listener.ended(job, 60)
            except (TimeoutError, ConnectionError) as error:
                verdict.problems.append(f"GPU {listener.lane.gpu}: {error}")
        got = len(listeners[0].of("proof.broadcast"))
        verdict.counts["events"] += got
        verdict.expect(got == count, f"a reading client of the same GPU got {got} of {count} events")
        verdict.expect(stalled.fileno() > 0, "the stalled client is gone")
    return verdict


def status(lanes: Sequence[Lane]) -> Verdict:
    """Three jobs on GPU 0: its port's ``status`` counts them down to 0, the others' never say anything but 0."""
    verdict = Verdict()
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        jobs = [lanes[0].submit(workflows.sleeping(0.3, tag=uuid.uuid4().hex)) for _ in range(3)]
        for job in jobs:
            lanes[0].finished(job)
        listeners[0].wait(lambda event: remaining(event) == 3)
        for lane, listener in zip(lanes, listeners, strict=True):
            late = open_.enter_context(Listener(lane))
            last = remaining(late.of("status")[0])
            said = [remaining(event) for event in listener.of("status")]
            verdict.counts["status events"] += len(said)
            verdict.expect(last == 0, f"a new client of GPU {lane.gpu} is told that {last} jobs wait")
            if lane is lanes[0]:
                after = said[said.index(3) :] if 3 in said else said
                verdict.expect(after == sorted(after, reverse=True) and after[-1] == 0, f"GPU 0 counted {said}")
            else:
                verdict.expect(set(said) == {0}, f"GPU {lane.gpu} said {said}")
    return verdict


def remaining(event: Event) -> int:
    """How many jobs a ``status`` event counts; -1 for other events."""
    return int(event.data["status"]["exec_info"]["queue_remaining"]) if event.kind == "status" else -1
