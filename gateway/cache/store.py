"""What is kept: entries by key, the longest unused going first when the bytes are used up.

Pure. Owns the bound on memory. Must never know what entries mean.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from gateway.cache.entry import Entry

Key = tuple[Hashable, bytes, bytes]
"""Whose answer it is, the target, and what else of the request it may depend on."""

VARIANTS: Final = 8
"""Entries of one target: more differ in something that is new in each request, and none would be used again."""


class Store:
    """Entries up to ``size`` bytes in all."""

    def __init__(self, size: int) -> None:
        self.limit = size
        self.bytes = 0
        """Bytes in use."""
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._variants: dict[tuple[Hashable, bytes], set[Key]] = {}
        """Keys by whose answer it is and target."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry | None:
        """The entry, which counts as used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def has_room(self, key: Key) -> bool:
        """Whether this target has not too many variants already."""
        return key in self._entries or len(self._variants.get(key[:2], ())) < VARIANTS

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry; those that were unused for longest make room."""
        self.drop(key)
        if entry.size > self.limit:
            return
        self._entries[key] = entry
        self._variants.setdefault(key[:2], set()).add(key)
        self.bytes += entry.size
        self.shrink(self.limit)

    def drop(self, key: Key) -> None:
        """Forget an entry, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.bytes -= entry.size
        variants = self._variants[key[:2]]
        variants.discard(key)
        if not variants:
            del self._variants[key[:2]]

    def drop_target(self, whose: Hashable, target: bytes) -> None:
        """Forget every variant of a target."""
        for key in list(self._variants.get((whose, target), ())):
            self.drop(key)

    def shrink(self, limit: int) -> None:
        """Go down to so many bytes."""
        self.limit = limit
        while self.bytes > limit:
            self.drop(next(iter(self._entries)))

    def drop_of(self, whose: Hashable, boot: str) -> None:
        """Forget what another life of this backend has said."""
        for key in [key for key, entry in self._entries.items() if key[0] is whose and entry.boot != boot]:
            self.drop(key)
