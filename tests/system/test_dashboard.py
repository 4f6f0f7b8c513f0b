"""The dashboard in a real browser, before a real backend."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.browser import Page, browser
from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import painting, sleeping

FAILING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 5}},
    "2": {"class_type": "TestFail", "inputs": {"value": ["1", 0], "exit_thread": False}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


RECOVERING = {**FAILING, "2": {"class_type": "TestOutOfMemory", "inputs": {"value": ["1", 0], "count": 1}}}
"""Has the backend write a line of its log that is about the job."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A browser."""
    with browser(tmp_path / "profile") as found:
        yield found


def row(job: str) -> str:
    """The table's row of a job, in JavaScript."""
    return f"[...document.querySelectorAll('#rows tr')].find(row => row.querySelector('.id').title === '{job}')"


def card(gpu: int) -> str:
    return f"document.querySelectorAll('.gpu')[{gpu}]"


def submit(product: Product, workflow: object, gpu: int | None) -> str:
    where = {} if gpu is None else {"gpu": gpu}
    answer = product.post(product.ports[0], "/jobs", {"workflow": workflow, **where})
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def state(page: Page, job: str, wanted: str) -> None:
    page.until(f"{row(job)}?.dataset.state === '{wanted}'")


def press(page: Page, inside: str, words: str) -> None:
    """Press a button as the keyboard does: it has to be a button that takes the focus."""
    buttons = f"[...({inside})?.querySelectorAll('button:not([hidden])') ?? []]"
    button = page.until(f"{buttons}.find(each => each.innerText === '{words}')")
    page.driver.execute_script("arguments[0].focus()", button)
    assert page.get("document.activeElement.innerText") == words
    page.driver.switch_to.active_element.send_keys("\n")


def choose(page: Page, selector: str, words: str) -> None:
    """Choose from a list."""
    from selenium.webdriver.support.select import Select  # noqa: PLC0415 (as in tests.doubles.browser)

    Select(page.driver.find_element("css selector", selector)).select_by_visible_text(words)


@pytest.mark.timeout(300)
def test_a_system_is_seen_at_work_and_looked_after(make: Callable[..., Product], page: Page, tmp_path: Path):
    """Empty, a job's progress, its cancel, a picture, a failure, a drained GPU, a dead backend, a gateway that went."""
    product: Product = make(gpus=2, settings=GENEROUS).start().ready()
    page.size(1280, 900, dark=False)
    page.driver.get(f"http://127.0.0.1:{product.ports[0]}/dashboard")
    page.until("document.getElementById('stream').innerText === 'Live'")
    page.until(f"{card(1)}?.dataset.state === 'ready'")
    assert page.get("document.getElementById('empty').innerText").startswith("No jobs yet.")
    shots = [page.shot(tmp_path / "empty.png")]

    long, waiting = submit(product, sleeping(120, 1), 0), submit(product, sleeping(120, 2), 0)
    state(page, long, "running")
    page.until(f"{card(0)}.dataset.state === 'busy'")
    page.until(f"{card(0)}.querySelector('.queue').innerText.includes('{waiting}')")
    far = page.until(f"{card(0)}.querySelector('progress').value")
    page.until(f"{card(0)}.querySelector('progress').value > {far}")
    assert "TestSleep" in page.until(f"{card(0)}.querySelector('.node').innerText")

    made, failed = submit(product, painting(3, "dash"), 1), submit(product, FAILING, 1)
    state(page, made, "succeeded")
    page.until(f"{row(made)}.querySelector('.output img')?.naturalWidth > 0")
    state(page, failed, "failed")
    assert "TestFail" in page.get(f"{row(failed)}.querySelector('.more').innerText")
    painted = submit(product, painting(4, "long", steps=9000, size=128), 1)
    page.until(f"{card(1)}.querySelector('.picture img').naturalWidth > 0")
    assert page.console() == []
    for width, height in ((360, 800), (1920, 1080), (3840, 2160)):
        for dark in (False, True):
            page.size(width, height, dark=dark)
            page.until(f"innerWidth === {width}")
            assert page.get("document.documentElement.scrollWidth") <= width
            shots.append(page.shot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png"))
        page.driver.execute_script("document.getElementById('jobs').scrollIntoView()")
        shots.append(page.shot(tmp_path / f"{width}-jobs.png"))
    page.size(1280, 900, dark=False)

    press(page, row(waiting), "Cancel")
    state(page, waiting, "canceled")
    press(page, row(long), "Cancel")
    state(page, long, "canceled")
    press(page, row(painted), "Cancel")
    state(page, painted, "canceled")
    press(page, row(made), "Run again")
    newest = "document.querySelector('#rows tr')"
    page.until(f"{newest}.dataset.state === 'succeeded' && {newest}.querySelector('.id').title !== '{made}'")

    press(page, row(failed), failed)
    page.until("document.getElementById('details').open && document.querySelector('#details pre')")
    assert "raised by the node TestFail" in page.get("document.getElementById('details-body').innerText")
    shots.append(page.shot(tmp_path / "details.png"))
    press(page, "document.getElementById('details')", "Close")

    press(page, card(1), "Drain")
    page.until(f"{card(1)}.dataset.state === 'draining'")
    for color in range(4):
        answer = product.post(product.ports[0], "/jobs?wait=60", {"workflow": sleeping(0.01, 10 + color)})
        assert answer.json()["gpu"] == 0
    press(page, card(1), "Resume")
    page.until(f"{card(1)}.dataset.state === 'ready'")
    press(page, card(1), "Free memory")
    page.until("document.getElementById('said').innerText.includes('let go of its models')")

    press(page, "document.getElementById('line')", "Pause queue")
    page.until("document.getElementById('advice').innerText.includes('The queue is paused')")
    held = submit(product, sleeping(0.01, 20), None)
    state(page, held, "queued")
    page.until("document.getElementById('advice').innerText.includes('1 job(s) wait')")
    shots.append(page.shot(tmp_path / "paused.png"))
    press(page, "document.getElementById('line')", "Resume queue")
    state(page, held, "succeeded")
    page.until("!document.getElementById('advice').innerText.includes('paused')")

    ran = submit(product, RECOVERING, 1)
    state(page, ran, "succeeded")
    page.driver.execute_script("document.querySelector('#log-list details').open = true")
    lines = "document.querySelector('#log-list pre').textContent"
    page.until(f"{lines}.includes('[lane 1 job {ran}]') && {lines}.includes('lane(s): cpu, cpu')")
    choose(page, "#log-list select", "jobs on GPU 1")
    page.until(f"{lines}.split('\\n').every(line => line.startsWith('[lane 1 job ')) && {lines}.includes('{ran}')")
    choose(page, "#log-list select", "jobs on GPU 0")
    page.until(f"!{lines}.includes('{ran}')")
    choose(page, "#log-list select", "everything")
    press(page, row(ran), ran)
    page.until("document.getElementById('details-body').innerText.includes('What it wrote')")
    assert "memory freed, trying again" in page.get("document.getElementById('details-body').innerText")
    press(page, "document.getElementById('details')", "Close")

    os.kill(product.backend_pid(), signal.SIGKILL)
    page.until(f"{card(0)}.dataset.state === 'down'")
    assert "comfy-gateway doctor" in page.get(f"{card(0)}.querySelector('.reason').innerText")
    shots.append(page.shot(tmp_path / "dead.png"))
    page.until(f"{card(0)}.dataset.state === 'ready' && {card(1)}.dataset.state === 'ready'", 100)
    page.until("document.querySelector('#log-list pre').textContent.includes('\\n')")

    product.interrupt()
    page.until("document.body.dataset.stream === 'lost' && !document.getElementById('notice').hidden")
    shots.append(page.shot(tmp_path / "lost.png"))
    print("\n".join(map(str, shots)))
