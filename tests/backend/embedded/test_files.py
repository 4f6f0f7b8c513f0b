"""Names and places of files."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.embedded.files import BadName, Files, Outside, expand, next_number, split_annotation, split_prefix


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "data")


def text(content: str):
    return lambda path: path.write_text(content)


def test_numbers_go_on_after_the_highest(files: Files):
    """A new file gets one more than the highest number there, whatever else lies in the folder."""
    for name in ("ComfyUI_00007_", "ComfyUI_x_", "ComfyUI-2_00050_", "Comfy_00060_", "ComfyUI_temp_00090_"):
        (files.folder("output") / f"{name}.png").touch()
    assert files.save("output", "ComfyUI", ".png", text("a")) == ("ComfyUI_00008_.png", "")
    assert files.save("output", "Comfy", ".png", text("a")) == ("Comfy_00061_.png", "")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], 1), (["a_00001_.png"], 2), (["a_99999_.png"], 100000), (["a_٣_.png"], 1), (["a_b_00004_.png"], 1),
        (["a_5"], 6),
    ],
)  # fmt: skip
def test_next_number(names: list[str], expected: int):
    """ComfyUI's way to read a number from a name."""
    assert next_number(names, "a") == expected


def test_prefixes_hold_folders_and_variables():
    """A prefix may name a subfolder and parts of the picture's size and the date."""
    now = time.struct_time((2026, 3, 4, 5, 6, 7, 0, 0, 0))
    found = expand("%year%-%month%-%day%/%hour%%minute%%second%_%width%x%height%_%other%", now, 64, 32)
    assert found == "2026-03-04/050607_64x32_%other%"
    assert split_prefix("a/b//c") == ("a/b", "c")
    assert split_prefix("c") == ("", "c")


def test_a_subfolder_is_made(files: Files):
    """Saving under a/b/name makes the folders and tells the subfolder."""
    assert files.save("output", "a/b/name", ".png", text("x")) == ("name_00001_.png", "a/b")
    assert (files.folder("output") / "a/b/name_00001_.png").read_text() == "x"


@pytest.mark.parametrize("prefix", ["../out", "/etc/out", "a/../../out", "../output2/x", "\0"])
def test_saving_stays_inside(files: Files, prefix: str):
    """A prefix that leads out of the output folder is an error and leaves nothing behind."""
    with pytest.raises((Outside, BadName)):
        files.save("output", prefix, ".png", text("x"))
    assert not list(files.data.parent.glob("out*"))


def test_a_failed_write_gives_the_name_back(files: Files):
    """When the writer fails no file is left, half or empty, and the number is free again."""

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.save("output", "a", ".png", fail)
    assert list(files.folder("output").iterdir()) == []
    assert files.save("output", "a", ".png", text("x"))[0] == "a_00001_.png"


def test_many_threads_and_two_processes_worth_of_savers_share_no_name(tmp_path: Path):
    """160 files under one prefix, from eight threads through two objects that know nothing of each other."""
    both = [Files(tmp_path / "data"), Files(tmp_path / "data")]
    names: list[str] = []

    def save(who: int) -> None:
        for index in range(20):
            name, _ = both[who % 2].save("output", "same/prefix", ".png", text(f"{who}-{index}"))
            names.append(name)

    threads = [threading.Thread(target=save, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = list((both[0].folder("output") / "same").iterdir())
    assert len(there) == len(set(names)) == 160
    assert len({path.read_text() for path in there}) == 160


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a.png", None)), ("a.png [output]", ("a.png", "output")), ("a.png[temp]", ("a.png", "temp")),
        ("a [x].png", ("a [x].png", None)),
    ],
)  # fmt: skip
def test_annotations(name: str, expected: tuple[str, str | None]):
    """A name may say which folder it is in."""
    assert split_annotation(name) == expected


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_asked_for_lies_inside_or_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, sub: str):
    """No filename and subfolder lead out of the folder that was named."""
    files = Files(tmp_path_factory.getbasetemp() / "asked")
    try:
        found = files.find(name, "output", sub)
    except (Outside, BadName):
        return
    folders = [files.folder(kind) for kind in ("output", "input", "temp")]
    assert any(folder == found or folder in found.parents for folder in folders)


def test_uploads_keep_what_is_there(files: Files):
    """Other content under a taken name gets a number; the same content is not written again."""

    def upload(content: str, *, overwrite: bool = False) -> str:
        return files.upload(
            "input", "", "a.png", text(content), overwrite=overwrite, same=lambda path: path.read_text() == content
        )

    assert [upload("1"), upload("1"), upload("2"), upload("3"), upload("2")] == [
        "a.png", "a.png", "a (1).png", "a (2).png", "a (1).png"
    ]  # fmt: skip
    assert upload("9", overwrite=True) == "a.png"
    assert (files.folder("input") / "a.png").read_text() == "9"


@pytest.mark.parametrize("name", ["", "..", ".", "a/b.png", "../b.png", "/b.png", "a\0"])
def test_upload_names_are_plain(files: Files, name: str):
    """An uploaded file's name is a name, not a path."""
    with pytest.raises(BadName):
        files.upload("input", "", name, text("x"), overwrite=False, same=lambda path: False)


def test_lists_show_models_and_pictures(files: Files):
    """Models by ending, with their subfolders; inputs that are pictures, whole ones only."""
    folder = files.data / "models" / "loras"
    (folder / "sub").mkdir()
    for name in ("b.safetensors", "sub/a.pt", "readme.txt"):
        (folder / name).touch()
    assert files.models("loras") == ["b.safetensors", "sub/a.pt"]
    for name in ("b.png", "a.JPG", "c.txt", ".part-x.png"):
        (files.folder("input") / name).touch()
    assert files.inputs() == ["a.JPG", "b.png"]
    with pytest.raises(FileNotFoundError):
        files.model("loras", "none.safetensors")
    with pytest.raises(Outside):
        files.model("loras", "../../x")


def test_temp_is_emptied(files: Files):
    """What an earlier process left in temp goes; input and output stay."""
    for kind in ("temp", "input", "output"):
        (files.folder(kind) / "old.png").touch()
    (files.folder("temp") / "sub").mkdir()
    files.empty_temp()
    assert list(files.folder("temp").iterdir()) == []
    assert (files.folder("output") / "old.png").exists()
