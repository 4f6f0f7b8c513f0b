"""What a workflow's class is made of."""

import pytest

from gateway.schedule.workflow import UNKNOWN, read
from tests.doubles.prompts import painting, tiny


def test_a_class_is_node_types_and_models():
    """Seeds, texts and prefixes do not matter; a model or a further node does."""
    one, other = read(painting(1, "a")), read(painting(2, "b"))
    assert one == other
    assert one.models == {"tiny.safetensors"}
    swapped = painting(1, "a")
    swapped["4"]["inputs"]["ckpt_name"] = "large.safetensors"
    assert read(swapped).kind != one.kind
    longer = {**painting(1, "a"), "10": {"class_type": "SaveImage", "inputs": {}}}
    assert read(longer).kind != one.kind
    assert read(tiny()).models == frozenset()


@pytest.mark.parametrize("prompt", [None, [], "x", {}, {"1": 3}, 7])
def test_what_is_no_graph_has_a_class_of_its_own(prompt: object):
    """It goes its way like all others."""
    assert read(prompt) is UNKNOWN


def test_links_numbers_and_odd_names_are_no_models():
    """Only strings that end like a model's file are."""
    inputs = {"a": ["4", 0], "b": 7, "c": "euler", "d": "X.CKPT", "e": "\ud800.pt", "f": None}
    assert read({"1": {"class_type": "L", "inputs": inputs}}).models == {"X.CKPT", "\ud800.pt"}
    assert read({"1": {"class_type": "L", "inputs": [1]}, "2": {}}).models == frozenset()
