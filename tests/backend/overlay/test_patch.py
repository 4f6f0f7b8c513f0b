"""A patch: found, checked, installed with all its copies, given back."""

import sys
import types
from typing import Any

import pytest

from backend.overlay.patch import (
    ABSENT,
    Copies,
    Patch,
    PatchSet,
    absent,
    anything,
    instance,
    params,
    params_start,
    read,
)
from backend.overlay.patches.modules import with_property


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a function, a class and a list; another that took copies by name."""
    made: Any = types.ModuleType("patched_by_tests")
    exec(
        "def f(a, b=1): return 'original'\n"
        "class C:\n"
        "    def m(self, x): return 'm'\n"
        "    @classmethod\n"
        "    def k(cls, y): return 'k'\n"
        "items = []\nflag = False\n",
        vars(made),
    )
    other: Any = types.ModuleType("copies_for_tests")
    other.f, other.g, other.flag = made.f, made.f, made.flag
    monkeypatch.setitem(sys.modules, "patched_by_tests", made)
    monkeypatch.setitem(sys.modules, "copies_for_tests", other)
    made.other = other
    return made


def new(*args: Any) -> str:
    return "new"


def patch(target: str, replacement: Any = new, **kwargs: Any) -> Patch:
    return Patch(f"patched_by_tests:{target}", lambda _: replacement, "a test", **kwargs)


def test_copies_taken_by_name_are_replaced_too(module: Any) -> None:
    """Whoever imported the name before has the new one, and gets the old one back."""
    original, one = module.f, patch("f")
    one.install()
    assert (module.f, module.other.f, module.other.g) == (new, new, new)
    assert one.installed
    one.remove()
    assert (module.f, module.other.f, module.other.g) == (original, original, original)
    assert not one.installed


def test_small_constants_are_nobodys_copies(module: Any) -> None:
    """False in another module is not this False."""
    patch("flag", True).install()
    assert (module.flag, module.other.flag) == (True, False)


def test_methods_and_class_methods_keep_their_kind(module: Any) -> None:
    """They are read and given back as they are stored in the class."""
    patches = [patch("C.m"), patch("C.k", classmethod(new), shape=params("cls", "y"))]
    before = read(module.C, "k")
    held = PatchSet(patches)
    assert held.check() == []
    held.install()
    assert (module.C().m(1), module.C.k(1)) == ("new", "new")
    held.remove()
    assert read(module.C, "k") is before


def test_a_name_can_be_added_and_taken_away(module: Any) -> None:
    """What was not there is not there afterwards; what goes comes back."""
    held = PatchSet([patch("C.extra", shape=absent), patch("items", ABSENT)])
    held.install()
    assert module.C().extra() == "new"
    assert not hasattr(module, "items")
    held.remove()
    assert not hasattr(module.C, "extra")
    assert module.items == []


def test_a_patch_is_not_installed_twice(module: Any) -> None:
    """The original would be lost."""
    one = patch("f")
    one.install()
    with pytest.raises(RuntimeError, match="already"):
        one.install()


@pytest.mark.parametrize(
    ("target", "shape", "says"),
    [
        ("f", params("a", "b"), None),
        ("f", params("a"), "found (a, b)"),
        ("f", params_start("a"), None),
        ("f", params_start("b"), "starting with (b)"),
        ("items", params("a"), "found list"),
        ("items", params_start("a"), "found list"),
        ("items", instance(list), None),
        ("items", instance(dict), "found list"),
        ("f", absent, "found function"),
        ("C.extra", absent, None),
        ("C.extra", anything, "to be there"),
        ("gone", anything, "to be there"),
        ("Gone.x", anything, "not found"),
    ],
)
def test_what_does_not_fit_is_said(module: Any, target: str, shape: Any, says: str | None) -> None:
    """The name, what was expected and what was found."""
    found = patch(target, shape=shape).check()
    if says is None:
        assert found is None
    else:
        assert says in str(found)
        assert str(found).startswith("patched_by_tests:")


def test_a_missing_module_is_a_misfit() -> None:
    """Not an exception at start."""
    assert "not found" in str(Patch("no_such_module_here:x", lambda _: None, "").check())


def test_all_or_none(module: Any) -> None:
    """A required patch that does not fit leaves everything as it was; an optional one is left out."""
    original = module.f
    with pytest.raises(RuntimeError, match="gone"):
        PatchSet([patch("f"), patch("gone")]).install()
    assert module.f is original

    def breaks(_: Any) -> Any:
        raise ValueError("cannot be made")

    with pytest.raises(ValueError, match="cannot"):
        PatchSet([patch("f"), Patch("patched_by_tests:items", breaks, "")]).install()
    assert module.f is original
    held = PatchSet([patch("gone", required=False), patch("f")])
    assert [misfit.required for misfit in held.check()] == [False]
    held.install()
    assert module.f is new


def test_required_misfits_come_first(module: Any) -> None:
    """The first line of a refusal is one that stops the start."""
    held = PatchSet([patch("gone", required=False), patch("away")])
    assert [misfit.target for misfit in held.check()] == ["patched_by_tests:away", "patched_by_tests:gone"]


def test_two_patches_of_one_name_add_up(module: Any) -> None:
    """The later one is around the earlier one, and both go."""
    original = module.f
    inner = Patch("patched_by_tests:f", lambda f: lambda a, b=1: f"inner {f(a)}", "")
    outer = Patch("patched_by_tests:f", lambda f: lambda a, b=1: f"outer {f(a)}", "")
    held = PatchSet([inner, outer])
    held.install()
    assert module.f(1) == module.other.g(1) == "outer inner original"
    assert held.undone() == []
    held.remove()
    assert module.f is original
    assert module.other.g is original


def test_what_others_undo_is_seen(module: Any) -> None:
    """A name that was replaced again, and a module that still holds the original."""
    original = module.f
    held = PatchSet([patch("f"), patch("C.m")])
    held.install()
    module.C.m = original
    module.other.late = original
    found = held.undone()
    assert "patched_by_tests:C.m was replaced (C.m)" in found
    assert "copies_for_tests.late still is the original of patched_by_tests:f" in found


def test_a_modules_variable_can_be_computed(module: Any) -> None:
    """Read and written through functions, several on one module, and plain again afterwards."""
    values = {"flag": True, "other_flag": 1}

    def prop(name: str) -> Patch:
        return Patch(
            "patched_by_tests:__class__",
            with_property(name, lambda: values[name], lambda value: values.__setitem__(name, value)),
            "a test", rebind=False,
        )

    held = PatchSet([prop("flag"), prop("other_flag")])
    held.install()
    assert (module.flag, module.other_flag) == (True, 1)
    module.flag = "set"
    assert values["flag"] == "set"
    assert held.undone() == []
    held.remove()
    assert module.flag is False
    assert type(module) is types.ModuleType


def test_one_look_finds_the_copies_of_many(module: Any) -> None:
    """And says which objects it looked for."""
    copies = Copies([module.f, module.items, 5])
    assert copies.looked_for(module.f)
    assert not copies.looked_for(5)
    assert {alias for _, alias in copies.of(module.f)} == {"f", "g"}
    assert copies.of(object()) == []
