"""Which backend has which GPU."""

from dataclasses import replace

import pytest

from gateway.config import Backend, Config, Listen
from gateway.config_load import parse
from gateway.layout import lanes_of, layout, together

FOUR = replace(Config(), listen=Listen(gpu_ports=(1, 2, 3, 4)))


def test_one_backend_has_all_gpus():
    """As ever."""
    (place,) = layout(FOUR)
    assert (place.index, place.first, place.lanes, place.instance) == (0, 0, 4, None)
    assert list(place.gpus) == [0, 1, 2, 3]


def test_gpus_count_through_the_tables():
    """Lanes as said, else as many as devices, else one."""
    config = replace(
        FOUR, backend=Backend(lanes=2), further=(Backend(devices=("cuda:0",)), Backend(url="http://10.0.0.2:1"))
    )
    assert [(place.first, place.lanes) for place in layout(config)] == [(0, 2), (2, 1), (3, 1)]


def test_per_gpu_is_one_process_for_each():
    """Each with its own port and device; the rest of the table is for all."""
    backend = Backend(mode="per-gpu", devices=("cuda:0", "cuda:1", "cuda:2", "cpu"), args=("--lowvram",))
    places = layout(replace(FOUR, backend=backend))
    assert [place.backend.url for place in places] == [f"http://127.0.0.1:{8188 + number}" for number in range(4)]
    assert [place.backend.devices for place in places] == [("cuda:0",), ("cuda:1",), ("cuda:2",), ("cpu",)]
    assert [place.instance for place in places] == [0, 1, 2, 3]
    assert {place.backend.args for place in places} == {("--lowvram",)}
    assert together(places)


def test_lanes_and_ports_must_be_as_many():
    """Said with both numbers, and found by the check of a file."""
    config = replace(FOUR, further=(Backend(url="http://10.0.0.2:1"),))
    assert lanes_of(config) == [1, 1]
    with pytest.raises(ValueError, match=r"1 \+ 1 lanes, but \[listen\] gpu_ports has 4 ports"):
        layout(config)


def test_folders_are_shared_only_by_what_we_start_alike():
    """Two machines have two folders."""
    far = (Backend(url="http://b:1", start=False, lanes=2),)
    assert not together(layout(replace(FOUR, backend=Backend(start=False, lanes=2), further=far)))
    near = replace(FOUR, backend=Backend(lanes=2), further=(Backend(url="http://127.0.0.1:9", lanes=2),))
    assert together(layout(near))


def said(text: str) -> list[str]:
    return [str(problem) for problem in parse(text, "f")[1]]


def test_a_file_may_name_several_backends():
    """[[backend]] again and again; a mistake in the second is shown on its line."""
    text = (
        "[listen]\ngpu_ports = [1, 2]\n"
        '[[backend]]\nurl = "http://10.0.0.1:8188"\nstart = false\n'
        '[[backend]]\nurl = "http://10.0.0.2:8188"\nstart = false\nweight = 2\n'
    )
    config, problems = parse(text)
    assert config is not None
    assert problems == []
    assert [backend.url for backend in config.backends] == ["http://10.0.0.1:8188", "http://10.0.0.2:8188"]
    assert config.further[0].weight == 2
    assert said(text + "wieght = 1") == ["f:10: [backend.2] wieght: unknown key; did you mean weight?"]
    assert said(text.replace("start = false\nweight", "start = 1\nweight"))[0].startswith("f:8: [backend.2] start")


def test_backends_that_meet_are_found():
    """Two at one address; a process of a GPU on a port that clients use; what only our own can be."""
    twice = '[listen]\ngpu_ports = [1, 2]\n[[backend]]\nstart = false\n[[backend]]\nstart = false\n'
    assert any("would both be behind http://127.0.0.1:8188" in line for line in said(twice))
    meets = '[listen]\nfront_port = 8000\ngpu_ports = [8189, 8001]\n[backend]\nmode = "per-gpu"\n'
    assert any("http://127.0.0.1:8189, which is in [listen]" in line for line in said(meets))
    other = '[backend]\nmode = "per-gpu"\nstart = false\n'
    assert any("must be" in line and "single" in line for line in said(other))
