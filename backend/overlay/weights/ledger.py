"""What one lane's loads cost, counted; may be called from any thread, and from finalizers.

Owns the counts. Knows nothing of files or modules.
"""

import threading


class Ledger:
    """Files read, reads avoided, files let go, masters copied before a write, jobs that wrote masters in place."""

    def __init__(self) -> None:
        # Reentrant: the collector may run a finalizer, which counts, in a thread that is counting.
        self._lock = threading.RLock()
        self.loads = 0
        self.avoided = 0
        self.evictions = 0
        self.copies = 0
        self.writes = 0
        self.moves = 0
        """Changes whenever something of the lane's was loaded, moved or copied; for those who keep a sum of it."""

    def loaded(self, avoided: bool) -> None:
        """A loader asked for a file, which was there or was read."""
        with self._lock:
            self.avoided += avoided
            self.loads += not avoided

    def evicted(self) -> None:
        """A file this lane had read is gone."""
        with self._lock:
            self.evictions += 1

    def copied(self) -> None:
        """A master is about to be written: its module got memory of its own."""
        with self._lock:
            self.copies += 1
            self.moves += 1

    def wrote(self) -> None:
        """A job of this lane wrote masters in place."""
        with self._lock:
            self.writes += 1

    def moved(self) -> None:
        """Something was loaded or moved."""
        with self._lock:
            self.moves += 1
