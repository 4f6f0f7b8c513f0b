"""What the proofs do to a ComfyUI, whatever it is: each scenario drives lanes and answers with counts and problems.

The same scenario runs on the overlay, where it must find no problem, and on the naive approach, where it must find
some: a scenario that finds nothing there proves nothing here. This module has what all share, pictures and files.
"""

import io
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.comfyui import workflows
from tests.comfyui.wire import JOB_LIMIT, Event, Lane, Prompt, outcome, why


@dataclass
class Verdict:
    """What a scenario counted, and everything that was not as it should be."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        self.counts["checks"] += 1
        if not holds:
            self.problems.append(problem)

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        return f"{counts}; {len(self.problems)} problems"


Entry = dict[str, Any]
ENOUGH = 4
"""Problems after which a scenario of many rounds stops."""


class Patience:
    """One deadline for all the waits of a scenario: where nothing works, it is not waited for again and again."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, and a little more, to look once."""
        return max(0.5, self._end - time.monotonic())


def run_all(
    lanes: Sequence[Lane], prompts: Sequence[Prompt], *, seconds: float = JOB_LIMIT,
    meanwhile: Callable[[int], None] | None = None,
) -> list[Entry]:
    """Run the prompts on the lanes in turn, all submitted at once; an empty entry for one that never ended.

    ``meanwhile`` is called with the number of each job just submitted.
    """
    jobs: list[tuple[Lane, str]] = []
    for index, prompt in enumerate(prompts):
        lane = lanes[index % len(lanes)]
        jobs.append((lane, lane.submit(prompt)))
        if meanwhile:
            meanwhile(index)
    patience = Patience(seconds)
    entries = []
    for lane, job in jobs:
        try:
            entries.append(lane.finished(job, patience.left()))
        except TimeoutError:
            entries.append({})
    return entries


def same_pictures(
    lanes: Sequence[Lane], twin: Lane, prompts: Sequence[Prompt], *, seconds: float = JOB_LIMIT,
    meanwhile: Callable[[int], None] | None = None,
) -> Verdict:
    """Every prompt, run on many lanes at once, gives the bytes that it gives on the twin alone."""
    verdict = Verdict()
    expected = run_all([twin], prompts)
    given = run_all(lanes, prompts, seconds=seconds, meanwhile=meanwhile)
    for index, (entry, alone) in enumerate(zip(given, expected, strict=True)):
        verdict.counts["jobs"] += 1
        assert outcome(alone) == "success", f"the twin itself failed: {why(alone)}"
        if not entry:
            verdict.problems.append(f"job {index} never ended")
            continue
        if (ended := outcome(entry)) != "success":
            verdict.problems.append(f"job {index} ended with {ended}: {why(entry)}")
            continue
        ours, theirs = lanes[index % len(lanes)].pictures(entry), twin.pictures(alone)
        verdict.counts["pictures"] += len(theirs)
        verdict.expect(ours == theirs, f"job {index} gave another picture than its twin")
        verdict.counts["different twins"] += len(set(theirs))
    return verdict


def files(
    lanes: Sequence[Lane], *, jobs: int, batch: int, saver: str, seconds: float = JOB_LIMIT, prefix: str | None = None
) -> Verdict:
    """Saves ``jobs`` times ``batch`` pictures under one prefix: none may be lost, each must show its job's colour."""
    verdict, prefix = Verdict(), prefix or f"same/{uuid.uuid4().hex[:6]}"
    colours = [0x102030 + 0x010305 * index for index in range(jobs)]
    prompts = [workflows.saved(colour, prefix, batch=batch, saver=saver) for colour in colours]
    entries = run_all(lanes, prompts, seconds=seconds)
    names: Counter[str] = Counter()
    for index, (entry, colour) in enumerate(zip(entries, colours, strict=True)):
        verdict.counts["jobs"] += 1
        if not entry or outcome(entry) != "success":
            verdict.problems.append(f"job {index}: {why(entry) if entry else 'never ended'}")
            continue
        for image in (image for output in entry["outputs"].values() for image in output.get("images", [])):
            names[image["filename"]] += 1
            verdict.counts["pictures"] += 1
            shown = Image.open(io.BytesIO(lanes[index % len(lanes)].picture(image))).convert("RGB").getpixel((0, 0))
            asked = (colour >> 16 & 255, colour >> 8 & 255, colour & 255)
            verdict.expect(shown == asked, f"{image['filename']} of job {index} shows {shown}, not {asked}")
    verdict.counts["names"] = len(names)
    verdict.expect(len(names) == jobs * batch, f"{jobs * batch} pictures have {len(names)} names")
    return verdict


def is_running(job: str) -> Callable[[Event], bool]:
    """Whether an event says that a node of ``job`` has shown progress."""
    return lambda event: event.kind == "progress" and event.data.get("prompt_id") == job


def ended_as(lane: Lane, job: str, seconds: float) -> str:
    """How a job ended, or that it did not."""
    try:
        return outcome(lane.finished(job, seconds))
    except TimeoutError:
        return "never ended"


def together(works: Sequence[Callable[[], None]]) -> None:
    """Run all at once in threads; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (handed to the caller)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
