"""What an administrator has ordered until further notice: the line paused, GPUs drained; a restart undoes neither.

Owns the file, beside the journal, that remembers it. Must never decide what an order means.
"""

import json
import logging
from pathlib import Path
from typing import Final

from gateway.fleet.lanes import Fleet
from gateway.jobs.schedule import Schedule

log = logging.getLogger("gateway.jobs")

NAME: Final = "paused.json"


class Pauses:
    """Those of one gateway. ``folder`` is the journal's."""

    def __init__(self, folder: Path, fleet: Fleet, schedule: Schedule) -> None:
        self._file = folder / NAME
        self._fleet = fleet
        self.schedule: Final = schedule

    def restore(self) -> None:
        """Obey what was ordered before the start; what cannot be read, or names a GPU that is gone, is passed over."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            paused, drained = bool(found["paused"]), {int(gpu) for gpu in found["drained"]}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): no GPU is drained, and the line goes on", self._file, error)
            return
        for gpu in sorted(drained & set(range(self._fleet.gpus))):
            self._fleet.member(gpu).drained.add(gpu)
            log.warning("GPU %d is still drained: comfy-gateway resume %d gives it jobs again", gpu, gpu)
        if paused and self.schedule.enabled:
            self.schedule.paused = True
            log.warning("the front door's line is still paused: POST /admin/line/resume lets it go on")

    def drain(self, gpu: int, *, drained: bool) -> None:
        """The front door gives this GPU nothing from now on, or does again."""
        ours = self._fleet.member(gpu).drained
        if drained != (gpu in ours):
            (ours.add if drained else ours.discard)(gpu)
            self._keep()

    def pause(self, *, paused: bool) -> None:
        """Nothing of the line is sent from now on, or is again."""
        if paused != self.schedule.paused:
            log.info("the front door's line is %s", "paused" if paused else "resumed")
            self.schedule.paused = paused
            self._keep()

    def _keep(self) -> None:
        drained = sorted(gpu for member in self._fleet.members for gpu in member.drained)
        new = self._file.with_suffix(".new")
        try:
            new.write_text(json.dumps({"paused": self.schedule.paused, "drained": drained}), encoding="utf-8")
            new.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written (%s): this order holds until the gateway ends", self._file, error)
