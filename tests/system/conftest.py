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


def shared(folder: Path, **options: object) -> Iterator[Product]:
    """A product for many tests; nobody may break it."""
    one = Product(folder, settings=GENEROUS, **options)  # type: ignore[arg-type]  # passed on as they are
    try:
        yield one.start().ready()
        assert one.process.poll() is None, one.log()
        assert one.stop() == 0, one.log()
        assert "Traceback" not in one.log(), one.log()
    finally:
        one.end()


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Gateway and embedded backend with four GPUs and limits that nobody meets; nobody may break it."""
    yield from shared(tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="session")
def product(single: Product) -> Product:
    """The same, for tests that are not about how many processes there are."""
    return single


@pytest.fixture(scope="session")
def per_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The same with one backend process for each of the four GPUs."""
    yield from shared(tmp_path_factory.mktemp("per-gpu"), mode="per-gpu")


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
