"""The bus of one process holds the bus's promises."""

from gateway.jobs.bus import LocalBus
from tests.gateway.jobs.bus_contract import BusContract


class TestLocalBus(BusContract):
    """Every promise of the interface."""

    def make(self) -> LocalBus:
        return LocalBus()


async def test_no_table_grows_with_jobs_that_are_over():
    """A thousand subscriptions later there is nothing left of them."""
    bus = LocalBus()
    for number in range(1000):
        async with bus.subscribe(f"job-{number}"):
            pass
    assert not bus._of
    assert not bus._all
