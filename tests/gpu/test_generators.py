"""The same seed gives the same bytes on a lane, whatever the other lanes draw meanwhile."""

import threading
from typing import Any

from tests.gpu.cards import lanes_on

LANES, ROUNDS = 4, 40


def drawn(device: str, seed: int) -> list[bytes]:
    """What a node draws after seeding: on the host and on its device, by factory, by shape, in place."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    torch.manual_seed(seed)
    like = torch.empty(64, 64, device=device)
    found = [
        torch.randn(64, 64, device=device), torch.rand(64, 64), torch.randn_like(like),
        torch.empty_like(like).normal_(), torch.randint(0, 1000, (64,), device=device),
        torch.randperm(64, device=device),
    ]
    return [each.cpu().numpy().tobytes() for each in found]


def test_a_seed_means_the_same_among_others(kind: str, one_card: bool) -> None:
    """Four lanes seed and draw at once, on one card and on several: every byte as on that lane alone."""
    from backend.lanes import Lane  # noqa: PLC0415 (collecting must be cheap)
    from backend.overlay.patches import randomness  # noqa: PLC0415 (as above)
    from backend.overlay.workers import warm_up  # noqa: PLC0415 (as above)
    from tests.backend.overlay.doubles import installed, job  # noqa: PLC0415 (as above)

    lanes = [Lane(index, device) for index, device in enumerate(lanes_on(kind, LANES, one_card=one_card))]
    wrong: list[Any] = []
    with installed(randomness.patches(lanes)):
        alone = {}
        for lane in lanes:
            with job(lane.index):
                warm_up(lane.device)
                alone[lane.index] = {seed: drawn(lane.device, seed) for seed in range(4)}
        ready = threading.Barrier(LANES)

        def worker(lane: Lane) -> None:
            with job(lane.index):
                warm_up(lane.device)
                ready.wait(60)
                for number in range(ROUNDS):
                    seed = (number + lane.index) % 4
                    if drawn(lane.device, seed) != alone[lane.index][seed]:
                        wrong.append((lane.index, seed))

        workers = [threading.Thread(target=worker, args=(lane,)) for lane in lanes]
        for each in workers:
            each.start()
        for each in workers:
            each.join(300)
    assert wrong == []
