"""The bound on memory."""

from gateway.cache.entry import Entry
from gateway.cache.store import VARIANTS, Store
from gateway.cache.worth import Worth


def entry(size: int, boot: str = "one") -> Entry:
    return Entry(Worth([], b'"a"', b"", 0, 0), bytes(size), None, boot=boot, arrived=0.0)


def key(name: str, variant: str = "", whose: str = "here") -> tuple[str, bytes, bytes]:
    return whose, name.encode(), variant.encode()


def test_what_was_unused_for_longest_goes_first():
    """Bytes in all stay within the bound, whatever comes."""
    size = entry(100_000).size
    store = Store(3 * size)
    for name in "abc":
        store.put(key(name), entry(100_000))
    assert store.get(key("a")) is not None
    store.put(key("d"), entry(100_000))
    assert [name for name in "abcd" if store.get(key(name))] == ["a", "c", "d"]
    assert store.bytes == 3 * size


def test_what_is_larger_than_all_is_not_kept():
    """It would only push everything out."""
    store = Store(50_000)
    store.put(key("a"), entry(10_000))
    store.put(key("b"), entry(60_000))
    assert store.get(key("a")) is not None
    assert store.get(key("b")) is None


def test_the_same_again_takes_no_more():
    """An entry replaces the one before it."""
    store = Store(1_000_000)
    for _ in range(10):
        store.put(key("a"), entry(1000))
    assert (len(store), store.bytes) == (1, entry(1000).size)
    store.drop(key("a"))
    store.drop(key("a"))
    assert (len(store), store.bytes) == (0, 0)


def test_variants_of_one_target_are_few():
    """A field that is new in each request does not fill the memory."""
    store = Store(1 << 30)
    for number in range(VARIANTS):
        assert store.has_room(key("a", str(number)))
        store.put(key("a", str(number)), entry(10))
    assert not store.has_room(key("a", "more"))
    assert store.has_room(key("a", "0"))
    assert store.has_room(key("b", "more"))
    store.drop(key("a", "3"))
    assert store.has_room(key("a", "more"))


def test_another_life_of_a_backend_forgets_the_last_one():
    """And only that backend's."""
    store = Store(1 << 30)
    here, there = object(), object()
    store.put((here, b"/a", b""), entry(10, "one"))
    store.put((there, b"/a", b""), entry(10, "one"))
    store.drop_of(here, "two")
    assert store.get((here, b"/a", b"")) is None
    assert store.get((there, b"/a", b"")) is not None


def test_a_smaller_bound_holds_at_once():
    """A reload may shrink it."""
    store = Store(1 << 30)
    for name in "abcd":
        store.put(key(name), entry(10_000))
    store.shrink(25_000)
    assert len(store) == 2
    assert store.bytes <= 25_000
