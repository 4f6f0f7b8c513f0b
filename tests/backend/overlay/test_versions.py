"""Which version a ComfyUI is treated as, and what is peculiar to it."""

from pathlib import Path

import pytest

from backend.overlay import versions


@pytest.mark.parametrize(
    ("number", "treated", "exact"),
    [
        ("0.3.64", "0.3.64", True), ("0.8.0", "0.8.0", True), ("0.33.0", "0.33.0", True),
        ("0.3.65", "0.3.64", False), ("0.3.1", "0.3.64", False), ("0.8.1", "0.8.0", False),
        ("0.12.0", "0.8.0", False), ("1.0", "0.33.0", False), ("odd", "0.3.64", False),
    ],
)
def test_an_unknown_version_is_treated_as_the_nearest_older_one(number: str, treated: str, exact: bool) -> None:
    """Numbers are compared as numbers: 0.33 is newer than 0.8."""
    version, found = versions.choose(number)
    assert (version.number, found) == (treated, exact)


def tree(folder: Path, **files: str) -> Path:
    """A checkout of which these files in ``comfy`` are there."""
    (folder / "comfy").mkdir()
    for name, text in files.items():
        (folder / "comfy" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "treated"),
    [
        ({}, "0.8.0"),
        ({"model_management": "PINNED_MEMORY = {}\n# DIRTY_MMAPS = set()\n"}, "0.8.0"),
        ({"model_management": "import torch\nDIRTY_MMAPS = set()\n"}, "0.33.0"),
        ({"model_management": "import torch\n\ndef reset_cast_buffers():\n    pass\n"}, "0.33.0"),
        ({"memory_management": "aimdo_enabled = False\n"}, "0.33.0"),
    ],
)
def test_newer_code_under_an_unknown_number_is_treated_as_newer(
    tmp_path: Path, files: dict[str, str], treated: str
) -> None:
    """One name of the newer memory manager is enough: it is started with the newer version's arguments."""
    version, exact = versions.choose("0.20.0", tree(tmp_path, **files))
    assert (version.number, exact) == (treated, False)
    added = [word for word, _ in version.arguments([])]
    assert added == (["--disable-dynamic-vram", "--cache-classic"] if treated == "0.33.0" else [])


def test_arguments_that_the_code_does_not_know_are_found(tmp_path: Path) -> None:
    """Its parser would end the start with a line that says nothing of why they were given."""
    text = 'parser.add_argument("--cache-classic")\nparser.add_argument("--disable-dynamic-vram-also")\n'
    folder = tree(tmp_path, cli_args=text)
    assert versions.unknown_words(folder, versions.choose("0.33.0")[0]) == ["--disable-dynamic-vram"]
    assert versions.unknown_words(folder, versions.choose("0.8.0")[0]) == []


def words(number: str, *given: str) -> list[str]:
    return [word for word, _ in versions.choose(number)[0].arguments(given)]


def test_arguments_are_added_where_a_version_needs_them() -> None:
    """None for older ones; the user's own choice is neither repeated nor contradicted."""
    assert words("0.3.64") == []
    assert words("0.33.0") == ["--disable-dynamic-vram", "--cache-classic"]
    assert words("0.33.0", "--disable-dynamic-vram", "--cache-lru", "5") == []
    assert words("0.33.0", "--cache-none") == ["--disable-dynamic-vram"]


def test_what_is_off_by_itself_is_said() -> None:
    """The newest version has no switch against assets, only one for them."""
    newest = versions.choose("0.33.0")[0]
    ((warns, note),) = newest.notes(["--lowvram"])
    assert not warns
    assert "unless --enable-assets is given" in note
    ((warns, note),) = newest.notes(["--enable-assets"])
    assert warns
    assert "not tried with several lanes" in note
    assert versions.choose("0.3.64")[0].notes(["--enable-assets"]) == []


@pytest.mark.parametrize("number", ["0.8.0", "0.33.0"])
def test_secrets_stay_out_of_sight(number: str) -> None:
    """The sixth field of a queue item is shown neither in queues nor in the history."""
    version, _ = versions.choose(number)
    item = (1, "id", {}, {}, [], {"api_key": "secret"})
    assert version.public(item) == [1, "id", {}, {}, []]
    assert "secret" not in repr(version.done_extra()["process_item"](item))


def test_older_items_are_shown_whole() -> None:
    """Five fields, and nothing extra for task_done."""
    version, _ = versions.choose("0.3.64")
    assert version.public((1, "id", {}, {}, [])) == [1, "id", {}, {}, []]
    assert version.done_extra() == {}
    version.close(None)


def test_what_a_version_runs_beside_the_server_is_ended() -> None:
    """The newest one's scanner of assets."""
    ended = []
    main = type("Main", (), {"asset_seeder": type("Seeder", (), {"shutdown": staticmethod(lambda: ended.append(1))})})
    versions.choose("0.33.0")[0].close(main)
    assert ended == [1]
