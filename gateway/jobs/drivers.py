"""Which drivers keep the jobs: the one place, below ``app.py``, that knows them by name.

Owns the order in which a folder is taken, its journal opened, and both given back. Must never know what they are for.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.config import Config
from gateway.fleet.estate import Estate, HeldError
from gateway.fleet.lanes import Fleet
from gateway.jobs.bus import LocalBus
from gateway.jobs.desk import Desk
from gateway.jobs.sqlite import SQLiteStore


def keepers(config: Config, fleet: Fleet) -> tuple[Estate | None, Desk | None]:
    """What the configuration names to keep jobs in, and who keeps them; nothing where no promises are made."""
    if not config.jobs.journal:
        return None, None
    folder = Path(config.jobs.journal)
    return Estate(folder), Desk(config, fleet, SQLiteStore(folder / "jobs.sqlite3"), LocalBus())


@asynccontextmanager
async def keeping(estate: Estate | None, desk: Desk | None) -> AsyncIterator[None]:
    """The folder is ours and the journal open within; raises ``HeldError`` or ``StoreError`` when they cannot be."""
    if estate is None or desk is None:
        yield
        return
    try:
        estate.take()
    except OSError as error:
        raise HeldError(f"the journal's folder cannot be used: {error}") from error
    try:
        await desk.open()
        try:
            yield
        finally:
            await desk.close()
    finally:
        estate.leave()
