"""Order and keys of a prompt's nodes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.embedded.graph import CycleError, keys, order

INPUTS = ("a", "b", "c")


def declared(node_id: str) -> tuple[str, ...]:
    return INPUTS


def prompt(**nodes: dict[str, Any]) -> dict[str, Any]:
    return {name: {"class_type": "N", "inputs": inputs} for name, inputs in nodes.items()}


def never(node_id: str) -> None:
    return None


def key(nodes: dict[str, Any], node_id: str, changed: Any = never) -> str:
    return keys(nodes, order(nodes, [node_id], declared), declared, changed)[node_id]


def test_sources_come_first_and_each_once():
    """A diamond is walked once, and what no output needs is left out."""
    both = {"a": ["left", 0], "b": ["right", 0]}
    nodes = prompt(top={}, left={"a": ["top", 0]}, right={"a": ["top", 1]}, out=both, x={})
    assert order(nodes, ["out"], declared) == ["top", "left", "right", "out"]


def test_one_output_is_complete_before_the_next():
    """Work for the second output begins only after the first can be shown."""
    nodes = prompt(a={}, b={}, first={"a": ["a", 0]}, second={"a": ["b", 0]})
    assert order(nodes, ["first", "second"], declared) == ["a", "first", "b", "second"]


def test_undeclared_links_do_not_count():
    """What a client adds beyond a node's inputs is neither needed nor part of its key."""
    nodes = prompt(junk={}, out={"zzz": ["junk", 0]})
    assert order(nodes, ["out"], declared) == ["out"]
    assert key(nodes, "out") == key(prompt(out={}), "out")


@pytest.mark.parametrize("nodes", [prompt(a={"a": ["a", 0]}), prompt(a={"a": ["b", 0]}, b={"a": ["a", 0]})])
def test_cycles_are_found(nodes: dict[str, Any]):
    """Nodes that need each other are an error, not an endless walk."""
    with pytest.raises(CycleError):
        order(nodes, ["a"], declared)


def test_a_long_chain_is_no_deep_recursion():
    """Twenty thousand nodes in a row are ordered and keyed."""
    chain: dict[str, dict[str, Any]] = {"0": {}}
    chain |= {str(index): {"a": [str(index - 1), 0]} for index in range(1, 20_000)}
    nodes = prompt(**chain)
    assert order(nodes, ["19999"], declared)[0] == "0"
    assert len(key(nodes, "19999")) == 64


def test_keys_depend_on_content_and_not_on_ids():
    """The same nodes under other ids have the same keys; any value, link or slot makes another."""
    base = prompt(x={"a": 1}, y={"b": ["x", 0]})
    assert key(base, "y") == key(prompt(p={"a": 1}, q={"b": ["p", 0]}), "q")
    for other in (
        prompt(x={"a": 2}, y={"b": ["x", 0]}),
        prompt(x={"a": 1}, y={"b": ["x", 1]}),
        prompt(x={"a": 1}, y={"c": ["x", 0]}),
        prompt(x={"a": "1"}, y={"b": ["x", 0]}),
        prompt(y={"b": 1}),
    ):
        assert key(other, "y") != key(base, "y")


def test_what_changes_outside_makes_another_key_downstream():
    """A file's new content gives its loader and all that follows new keys; NaN never gives the same twice."""
    nodes = prompt(x={}, y={"a": ["x", 0]})
    assert key(nodes, "y", lambda node: "v1") == key(nodes, "y", lambda node: "v1")
    assert key(nodes, "y", lambda node: "v1") != key(nodes, "y", lambda node: "v2" if node == "x" else "v1")
    nan = float("nan")
    assert key(nodes, "y", lambda node: nan) != key(nodes, "y", lambda node: nan)


@given(st.dictionaries(st.sampled_from("abcdef"), st.dictionaries(st.sampled_from(INPUTS), st.sampled_from("abcdefz"))))
def test_any_graph_is_ordered_or_a_cycle(links: dict[str, dict[str, str]]):
    """Whatever is linked to whatever: sources stand before their users, or it is a cycle; nothing else."""
    nodes = prompt(**{name: {key: [source, 0] for key, source in inputs.items()} for name, inputs in links.items()})
    try:
        found = order(nodes, list(nodes), declared)
    except CycleError:
        return
    assert sorted(found) == sorted(nodes)
    for name, inputs in links.items():
        for source in inputs.values():
            assert source not in nodes or found.index(source) < found.index(name)
