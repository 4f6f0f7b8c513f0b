"""Two ways to run each proof: dry, on the CPU, everywhere; and on CUDA, skipped and said so where there is none."""

from pathlib import Path

import pytest

from tests.gpu.cards import NO_CUDA, card_name, cuda_devices

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked ``gpu`` is not run without a CUDA device."""
    proofs = [item for item in items if item.path.is_relative_to(HERE) and item.get_closest_marker("gpu")]
    if proofs and not cuda_devices():
        for item in proofs:
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Measured figures mean nothing without the card's name."""
    if cuda_devices():
        terminalreporter.write_line(f"CUDA: {cuda_devices()} device(s), the first is {card_name()}")


@pytest.fixture(params=["dry", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    """``cpu`` for the dry run, ``cuda``."""
    return "cpu" if request.param == "dry" else "cuda"


@pytest.fixture(params=[False, True], ids=["every-card", "one-card"])
def one_card(request: pytest.FixtureRequest) -> bool:
    """Lanes on as many cards as there are, and all on the first."""
    return bool(request.param)
