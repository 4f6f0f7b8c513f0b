"""The product as processes: one start that most tests share, and fresh ones for tests that break things."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.product import GENEROUS, Product

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a system test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Gateway and embedded backend with four GPUs and limits that nobody meets; nobody may break it."""
    shared = Product(tmp_path_factory.mktemp("up"), settings=GENEROUS)
    try:
        yield shared.start().ready()
        assert shared.process.poll() is None, shared.log()
        assert shared.stop() == 0, shared.log()
        assert "Traceback" not in shared.log(), shared.log()
    finally:
        shared.end()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Product]]:
    """Makes products that are ended with the test; each gets a folder of its own."""
    made: list[Product] = []

    def new(**options: object) -> Product:
        folder = tmp_path / f"up{len(made)}"
        folder.mkdir()
        made.append(Product(folder, **options))
        return made[-1]

    try:
        yield new
    finally:
        for one in made:
            one.end()
