"""The order of attention's backends is asked for once; whoever changes it meanwhile changes nothing for ComfyUI."""

import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from backend.overlay.patches import attention
from backend.overlay.patches.attention import Once, process_state

ORDER = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]


@pytest.fixture
def once() -> Iterator[Once]:
    """In place of ``sdpa_kernel``; the process's order is as before after the test."""
    before = process_state()
    made = Once(sdpa_kernel)
    yield made
    made.close()
    assert process_state() == before


def inside(context: Once | Callable[..., object], backends: list[SDPBackend] = ORDER) -> tuple[object, ...]:
    with context(backends, set_priority=True):  # type: ignore[union-attr] # both give a context
        return process_state()


def test_inside_the_block_it_is_as_with_torchs_own(once: Once) -> None:
    """The first call and every later one see the order that was asked for."""
    wanted = inside(sdpa_kernel)
    assert wanted != process_state()
    assert [inside(once) for _ in range(3)] == [wanted] * 3


def test_between_the_calls_the_order_stays(once: Once) -> None:
    """That is what is spared: nothing is set and nothing is set back."""
    wanted = inside(once)
    assert process_state() == wanted


def test_somebody_elses_block_is_seen(once: Once) -> None:
    """Another lane's node allows one backend only: ComfyUI's own call gets its order all the same."""
    wanted = inside(once)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = process_state()[1:]
        assert inside(once) == wanted
        assert process_state()[1:] == theirs
    # Torch gives back which backends are allowed, and leaves their order as it happens to be.
    assert process_state() != wanted
    assert inside(once) == wanted
    assert process_state() == wanted


def test_another_order_is_torchs_business(once: Once) -> None:
    """Asked for something else, or without an order, it is what torch makes of it."""
    inside(once)
    other = ORDER[::-1]
    assert inside(once, other) == inside(sdpa_kernel, other)
    with once(SDPBackend.MATH):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_only_comfyuis_own_name_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has the name; torch's own and everybody's copies stay."""
    package, ops = types.ModuleType("comfy"), types.ModuleType("comfy.ops")
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.ops", ops)
    assert attention.patches() == []
    ops.sdpa_kernel = sdpa_kernel  # type: ignore[attr-defined]
    (patch,) = attention.patches()
    assert patch.check() is None
    patch.install()
    try:
        assert isinstance(ops.sdpa_kernel, Once)
        assert torch.nn.attention.sdpa_kernel is sdpa_kernel
    finally:
        patch.remove()
    assert ops.sdpa_kernel is sdpa_kernel
    ops.sdpa_kernel = lambda backends: None  # type: ignore[attr-defined]
    misfit = patch.check()
    assert misfit is not None
    assert not misfit.required

