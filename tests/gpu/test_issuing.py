"""Whether a device was behind its host, asked of a real one; attention with its order of backends asked for once."""

import time
from typing import Any

import pytest

from tests.gpu.cards import lanes_on


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "repeat", "pause", "ahead"), [(4096, 20, 0.0, True), (16, 20, 0.002, False)],
                         ids=["heavy", "light"])
def test_a_device_says_whether_it_was_behind(size: int, repeat: int, pause: float, ahead: bool) -> None:
    """Long kernels issued at once leave the host ahead; short ones with pauses between them do not."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    from backend.lanes import Lane  # noqa: PLC0415 (as above)
    from backend.overlay.patches import issue  # noqa: PLC0415 (as above)

    lane = Lane(0, "cuda:0")
    device = issue.Device(lane)
    x = torch.randn(size, size, device="cuda:0") / size**0.5
    for _ in range(4 * issue.EVERY):
        mark = device.begin()
        began = time.perf_counter()
        for _ in range(repeat):
            x = torch.tanh(x @ x)
            time.sleep(pause)
        device.end(mark, time.perf_counter() - began)
        torch.cuda.synchronize()
    found = lane.issuing.view().ahead
    assert found is not None
    assert (found > 0.5) is ahead


def test_attention_gives_the_same_bytes_with_its_order_asked_for_once(kind: str) -> None:
    """Half precision on a GPU, where the backend that is chosen shows in the bytes."""
    import torch  # noqa: PLC0415 (collecting must be cheap)
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415 (as above)
    from torch.nn.functional import scaled_dot_product_attention  # noqa: PLC0415 (as above)

    from backend.overlay.patches.attention import Once  # noqa: PLC0415 (as above)

    device = lanes_on(kind, 1)[0]
    order = [
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
    ]
    q = torch.randn(2, 8, 256, 64, generator=torch.Generator().manual_seed(1)).to(device)
    q = q.half() if kind == "cuda" else q

    def attended(context: Any) -> Any:
        with torch.inference_mode(), context(order, set_priority=True):
            return scaled_dot_product_attention(q, q, q)

    wanted, once = attended(sdpa_kernel), Once(sdpa_kernel)
    try:
        assert all(torch.equal(attended(once), wanted) for _ in range(3))
    finally:
        once.close()
