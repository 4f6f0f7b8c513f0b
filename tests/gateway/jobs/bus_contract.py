"""The promises of ``gateway.jobs.bus.Bus``, as tests that any driver must pass: subclass, and say how to make one."""

import asyncio

from gateway.jobs.bus import WAITING, Bus
from gateway.jobs.record import Record, new


def job(number: int, name: str = "") -> Record:
    """A fresh record."""
    return new(name or f"job-{number}", number, 0.0)


class BusContract:
    """What every driver is asked."""

    def make(self) -> Bus:
        """A bus."""
        raise NotImplementedError

    async def test_news_come_in_order_and_to_everyone(self):
        """Two who want everything hear everything, in the order of publication."""
        bus = self.make()
        async with bus.subscribe() as first, bus.subscribe() as second:
            for number in range(5):
                bus.publish(job(number))
            for each in (first, second):
                assert [(await each.get()).seq for _ in range(5)] == [0, 1, 2, 3, 4]

    async def test_news_of_one_job_alone(self):
        """Who asks for one job hears of no other."""
        bus = self.make()
        async with bus.subscribe("b") as news:
            bus.publish(job(1, "a"))
            bus.publish(job(2, "b"))
            assert (await news.get()).seq == 2

    async def test_waiting_for_news(self):
        """Who waits is woken by the next publication."""
        bus = self.make()
        async with bus.subscribe() as news, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(news.get(), name="waiting")
            await asyncio.sleep(0)
            assert not waiting.done()
            bus.publish(job(7))
            assert (await waiting).seq == 7

    async def test_a_reader_that_stalls_loses_the_oldest_and_harms_nobody(self):
        """The newest are there, in order; the other reader has them all."""
        bus = self.make()
        async with bus.subscribe() as stalled, bus.subscribe("x") as other:
            for number in range(WAITING + 10):
                bus.publish(job(number, "x" if number < 3 else ""))
            assert (await stalled.get()).seq == 10
            assert [(await other.get()).seq for _ in range(3)] == [0, 1, 2]

    async def test_what_was_published_before_is_not_told(self):
        """A subscription begins with what comes next."""
        bus = self.make()
        bus.publish(job(1))
        async with bus.subscribe() as news:
            bus.publish(job(2))
            assert (await news.get()).seq == 2

    async def test_leaving_leaves_nothing(self):
        """After a subscription nothing is gathered for it, and a new one works."""
        bus = self.make()
        async with bus.subscribe("a"):
            pass
        bus.publish(job(1, "a"))
        async with bus.subscribe("a") as news:
            bus.publish(job(2, "a"))
            assert (await news.get()).seq == 2
