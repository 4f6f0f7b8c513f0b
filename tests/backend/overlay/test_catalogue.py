"""The page that lists what is replaced."""

from pathlib import Path

from backend.overlay import catalogue

PAGE = Path(__file__).resolve().parents[3] / "docs" / "patches.md"


def test_the_page_is_the_list() -> None:
    """docs/patches.md says what the code does; `python -m backend.overlay.catalogue` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == catalogue.page()
