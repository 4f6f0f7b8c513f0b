"""Scenarios of interrupts: what is stopped, and above all what is not.

See ``scenarios`` for what a scenario is.
"""

import itertools
import uuid
from collections.abc import Sequence
from contextlib import ExitStack

from tests.comfyui import workflows
from tests.comfyui.scenarios import ENOUGH, Verdict, ended_as, is_running
from tests.comfyui.wire import Lane, Listener, outcome

LONG = {
    "node": lambda tag: workflows.sleeping(60, steps=3000, tag=tag),
    "coroutine": lambda tag: workflows.sleeping(60, steps=3000, tag=tag, kind="ProofAsyncSleep"),
    "sampler": lambda tag: workflows.sampled(int(tag[:8], 16), steps=2000, prefix="never"),
}
"""Jobs that only an interrupt ends, by what asks for it."""


def interrupts(lanes: Sequence[Lane], rounds: int, *, seconds: float = 60) -> Verdict:
    """Aims an interrupt at one lane's job while all others work: it stops that one and nothing else.

    The others run short jobs one after another, so that jobs start and end all the time around the interrupt.
    """
    verdict = Verdict()
    kinds = itertools.cycle(LONG.items())
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        for turn in range(rounds):
            if len(verdict.problems) >= ENOUGH:
                break
            victim = turn % len(lanes)
            name, make = next(kinds)
            lane, listener = lanes[victim], listeners[victim]
            target = lane.submit(make(uuid.uuid4().hex), listener.client)
            bystanders = [(other, other.submit(workflows.sleeping(0.05 + 0.05 * (index % 3), tag=uuid.uuid4().hex)))
                          for index in range(2) for other in lanes if other is not lane]
            verdict.counts["interrupts"] += 1
            try:
                listener.wait(is_running(target), seconds)
                lane.interrupt(target)
                ended = outcome(lane.finished(target, seconds))
            except (TimeoutError, ConnectionError) as error:
                ended = f"not stopped: {error}"
                lane.interrupt()
            verdict.expect(ended == "interrupted", f"round {turn}: the {name} job aimed at ended as {ended}")
            for other, job in bystanders:
                verdict.counts["bystanders"] += 1
                ended = ended_as(other, job, seconds)
                verdict.expect(ended == "success", f"round {turn}: an innocent job on GPU {other.gpu} ended as {ended}")
    return verdict


def late_interrupts(lanes: Sequence[Lane], rounds: int, *, seconds: float = 60) -> Verdict:
    """Interrupts aimed at jobs that are ending or have just ended stop nobody: not the next job, not the neighbours'.

    In every other round they are aimed over and over while the job ends, so that some hit it and some come too late.
    """
    verdict = Verdict()
    for turn in range(rounds):
        if len(verdict.problems) >= ENOUGH:
            break
        lane = lanes[turn % len(lanes)]
        first = lane.submit(workflows.sleeping(0.04, steps=2, tag=uuid.uuid4().hex))
        others = [(other, other.submit(workflows.sleeping(0.3, tag=uuid.uuid4().hex))) for other in lanes]
        if turn % 2:
            ended_as(lane, first, seconds)
        for _ in range(12 if turn % 2 == 0 else 1):
            lane.interrupt(first)
            verdict.counts["interrupts"] += 1
        ended = ended_as(lane, first, seconds)
        verdict.counts[f"aimed at: {ended}"] += 1
        verdict.expect(ended in ("success", "interrupted"), f"round {turn}: the job aimed at ended as {ended}")
        for other, job in others:
            ended = ended_as(other, job, seconds)
            verdict.expect(ended == "success", f"round {turn}: a job on GPU {other.gpu} ended as {ended}")
    return verdict


def nameless_interrupts(lanes: Sequence[Lane], rounds: int, *, seconds: float = 60) -> Verdict:
    """An interrupt without a job's name stops what runs on its own GPU only."""
    verdict = Verdict()
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        for turn in range(rounds):
            victim = turn % len(lanes)
            waits = [60 if lane is lanes[victim] else 0.6 for lane in lanes]
            jobs = [lane.submit(workflows.sleeping(wait, steps=100, tag=uuid.uuid4().hex), listener.client)
                    for lane, wait, listener in zip(lanes, waits, listeners, strict=True)]
            try:
                listeners[victim].wait(is_running(jobs[victim]), seconds)
            except (TimeoutError, ConnectionError) as error:
                verdict.problems.append(f"round {turn}: {error}")
                break
            lanes[victim].interrupt()
            verdict.counts["interrupts"] += 1
            for lane, job in zip(lanes, jobs, strict=True):
                ended, wanted = ended_as(lane, job, seconds), "interrupted" if lane is lanes[victim] else "success"
                verdict.expect(ended == wanted, f"round {turn}: GPU {lane.gpu} ended as {ended}")
    return verdict


def interrupts_from_elsewhere(lanes: Sequence[Lane], rounds: int) -> Verdict:
    """A job is stopped by its name from a port that is not its own; what runs on that port goes on."""
    verdict = Verdict()
    with ExitStack() as open_:
        listeners = [open_.enter_context(Listener(lane)) for lane in lanes]
        for turn in range(rounds):
            victim, sender = turn % len(lanes), (turn + 1) % len(lanes)
            target = lanes[victim].submit(LONG["node"](uuid.uuid4().hex), listeners[victim].client)
            innocent = lanes[sender].submit(workflows.sleeping(0.5, tag=uuid.uuid4().hex), listeners[sender].client)
            for job, listener in ((target, listeners[victim]), (innocent, listeners[sender])):
                listener.wait(is_running(job))
            lanes[sender].interrupt(target)
            verdict.counts["interrupts"] += 1
            for lane, job, wanted in ((lanes[victim], target, "interrupted"), (lanes[sender], innocent, "success")):
                ended = ended_as(lane, job, 30)
                verdict.expect(ended == wanted, f"round {turn}: the job on GPU {lane.gpu} ended as {ended}")
                if ended == "never ended":
                    lane.interrupt()
    return verdict
