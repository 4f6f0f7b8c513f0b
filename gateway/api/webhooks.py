"""Webhooks: whoever asked for it is told of a job's end, again and again until it has heard, also after a restart.

Owns what is owed: it stands in the job's record, so that the journal alone is enough to go on from. At least once: an
answer that was lost means another attempt, under the same ``webhook-id``. Must never hold a job up.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway import __version__
from gateway.api.deliver import DeliveryError, Refused, deliver
from gateway.jobs.journal import Journal
from gateway.jobs.record import Record
from gateway.webhook import Webhooks, signature, wait_after

log = logging.getLogger("gateway.webhooks")

_LOOK: Final = 30.0
"""Seconds between two looks through the journal: news may have been missed."""
_GONE: Final = 410
"""The receiver wants no more of it."""

Show = Callable[[Record], Mapping[str, Any]]


class Deliveries:
    """Sends what is owed. ``show`` is a job as the API shows it."""

    def __init__(self, journal: Journal, settings: Webhooks, show: Show) -> None:
        self.counts = {"delivered": 0, "failed": 0, "given_up": 0}
        """Attempts by how they went, and webhooks that nobody will try again."""
        self._journal = journal
        self._show = show
        self._due: dict[str, float] = {}
        """When each is to be tried next, in seconds since 1970."""
        self._under_way: set[str] = set()
        self._more = asyncio.Event()
        self.apply(settings)

    def apply(self, settings: Webhooks) -> None:
        """Go by these from now on."""
        self.settings = settings
        # An empty address is the configured one, whatever that is when the time comes.
        self._journal.defaults["webhook"] = {"url": ""} if settings.url else {}

    def attempts(self) -> Mapping[str, int]:
        """For metrics."""
        return self.counts

    async def run(self) -> None:
        """Deliver; never ends by itself."""
        async with self._journal.bus.subscribe() as news, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(news.get), name="webhook-news")
            looked = -_LOOK
            while True:
                if (now := self._journal.clock()) - looked >= _LOOK or now < looked:
                    looked = now
                    self._look()
                for job in self._ripe():
                    self._under_way.add(job)
                    tasks.create_task(self._deliver(job), name="webhook")
                await self._rest()

    async def _hear(self, get: Callable[[], Any]) -> None:
        while True:
            record = await get()
            if record.ended and owed(record):
                self._due.setdefault(record.id, 0.0)
                self._more.set()

    def _look(self) -> None:
        for record in self._journal.newest_first():
            if record.ended and owed(record) and record.id not in self._under_way:
                self._due.setdefault(record.id, float(record.webhook.get("next") or 0.0))

    def _ripe(self) -> list[str]:
        """Those whose time has come, the longest due first, as many as there is room for."""
        now = self._journal.clock()
        room = max(0, self.settings.at_once - len(self._under_way))
        ripe = sorted((at, job) for job, at in self._due.items() if at <= now)[:room]
        for _, job in ripe:
            del self._due[job]
        return [job for _, job in ripe]

    async def _rest(self) -> None:
        wait = _LOOK
        if len(self._under_way) < self.settings.at_once and self._due:
            wait = min(wait, max(0.0, min(self._due.values()) - self._journal.clock()))
        try:
            async with asyncio.timeout(wait):
                await self._more.wait()
        except TimeoutError:
            return
        self._more.clear()

    async def _deliver(self, job: str) -> None:
        try:
            record = self._journal.get(job)
            if record is not None and owed(record):
                await self._attempt(record)
        except Exception:
            # Whatever it was, the task group must not take all others down with this one.
            log.exception("the webhook of job %s cannot be sent", job)
            self._due[job] = self._journal.clock() + self.settings.first_wait
        finally:
            self._under_way.discard(job)
            self._more.set()

    async def _attempt(self, record: Record) -> None:
        settings = self.settings
        asked = record.webhook
        url = str(asked.get("url") or settings.url)
        tries = int(asked.get("tries") or 0) + 1
        over, why = False, ""
        try:
            status = await deliver(url, *self._message(record), timeout=settings.timeout, allow=settings.allow)
            over = 200 <= status < 300 or status == _GONE
            why = "" if 200 <= status < 300 else f"It was answered with {status}."
        except Refused as error:
            over, why = True, str(error)
        except DeliveryError as error:
            why = str(error)
        now = self._journal.clock()
        told: dict[str, Any] = {**asked, "tries": tries, "why": why}
        if not why:
            told["told"] = now
        elif over or tries >= settings.attempts:
            over = True
            log.warning("the webhook of job %s is given up after %d attempt(s): %s", record.id, tries, why)
        else:
            self._due[record.id] = told["next"] = now + wait_after(tries, settings.first_wait)
        told["over"] = over
        self.counts["failed" if why else "delivered"] += 1
        self.counts["given_up"] += bool(why and over)
        await self._journal.note(record.id, webhook=told)

    def _message(self, record: Record) -> tuple[bytes, bytes]:
        """Field lines and body."""
        at = int(self._journal.clock())
        body = json.dumps({"type": "job.ended", "timestamp": at, "data": self._show(record)}).encode()
        message = f"job-{record.seq}-{int(record.times[0][1] * 1000)}"
        lines = [
            "Content-Type: application/json",
            f"User-Agent: comfy-gateway/{__version__}",
            f"webhook-id: {message}",
            f"webhook-timestamp: {at}",
        ]
        secret = str(record.webhook.get("secret") or self.settings.secret)
        if secret:
            lines.append(f"webhook-signature: {signature(secret, message, at, body)}")
        return "".join(f"{line}\r\n" for line in lines).encode(), body


def owed(record: Record) -> bool:
    """Whether somebody is still to be told."""
    return "url" in record.webhook and not record.webhook.get("over")
