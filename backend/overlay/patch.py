"""A change to one name of a foreign module, as an object: target, fingerprint, check, install, remove.

Owns how names are found, checked, replaced and given back. Knows no ComfyUI name; those stand in ``patches/``.
All targets are checked before the first is changed; either all are installed or none is.
"""

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

log = logging.getLogger("backend.overlay")


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""Stands for "there is no such name": as an original, that the patch adds it; as a replacement, that it goes."""

Shape = Callable[[Any], str | None]
"""Looks at the original and says what does not fit, or ``None`` when it fits."""


def _named(original: Any) -> str:
    return "nothing" if original is ABSENT else type(original).__name__


def params(*names: str) -> Shape:
    """A callable whose parameters are exactly ``names``, in order (``self`` and ``cls`` included as written)."""

    def check(original: Any) -> str | None:
        try:
            found = tuple(inspect.signature(original).parameters)
        except (TypeError, ValueError):
            return f"expected a function with parameters ({', '.join(names)}), found {_named(original)}"
        if found != names:
            return f"expected parameters ({', '.join(names)}), found ({', '.join(found)})"
        return None

    return check


def params_start(*names: str) -> Shape:
    """A callable whose first parameters are ``names``; what follows may differ between versions."""

    def check(original: Any) -> str | None:
        try:
            found = tuple(inspect.signature(original).parameters)
        except (TypeError, ValueError):
            return f"expected a function starting with ({', '.join(names)}), found {_named(original)}"
        if found[: len(names)] != names:
            return f"expected parameters starting with ({', '.join(names)}), found ({', '.join(found)})"
        return None

    return check


def instance(kind: type) -> Shape:
    """An object of exactly this type."""

    def check(original: Any) -> str | None:
        return None if type(original) is kind else f"expected a {kind.__name__}, found {_named(original)}"

    return check


def anything(original: Any) -> str | None:
    """Present, whatever it is."""
    return "expected it to be there" if original is ABSENT else None


def absent(original: Any) -> str | None:
    """Not there yet: the patch adds it."""
    return None if original is ABSENT else f"expected no such name, found {_named(original)}"


@dataclass(frozen=True)
class Misfit:
    """One name that is not as the patch expects it."""

    target: str
    problem: str
    required: bool

    def __str__(self) -> str:
        return f"{self.target}: {self.problem}"


@dataclass
class Patch:
    """One change to one name: ``target`` is ``"package.module:name"`` or ``"package.module:Class.name"``.

    ``replace`` gets the original (``ABSENT`` if there is none) and returns what stands there afterwards.
    ``rebind`` also replaces copies that other modules took with ``from … import name``.
    """

    target: str
    replace: Callable[[Any], Any]
    why: str
    shape: Shape = anything
    required: bool = True
    rebind: bool = True
    _undo: list[tuple[Any, str, Any]] = field(default_factory=list, repr=False)
    _new: list[Any] = field(default_factory=list, repr=False)

    @property
    def installed(self) -> bool:
        return bool(self._undo)

    def locate(self) -> tuple[Any, str, Any]:
        """Owner, attribute name and original; raises ``ImportError`` or ``AttributeError`` when it is not there."""
        module_name, _, path = self.target.partition(":")
        owner: Any = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name, read(owner, name)

    def check(self) -> Misfit | None:
        """What does not fit, or ``None``."""
        try:
            _, _, original = self.locate()
        except (ImportError, AttributeError) as error:
            return Misfit(self.target, f"not found ({error})", self.required)
        callee = original.__func__ if isinstance(original, (classmethod, staticmethod)) else original
        problem = self.shape(callee)
        return Misfit(self.target, problem, self.required) if problem else None

    def install(self, copies: "Copies | None" = None) -> None:
        """Put the replacement in place; raises ``RuntimeError`` when this patch is in place already.

        ``copies`` spares the look through all modules when somebody has done it for many patches at once.
        """
        if self.installed:
            raise RuntimeError(f"{self.target} is patched already")
        owner, name, original = self.locate()
        replacement = self.replace(original)
        self._write(owner, name, original, replacement)
        if self._may_be_copied(owner, original):
            if copies is None or not copies.looked_for(original):
                copies = Copies([original])
            for module, alias in copies.of(original):
                if (module, alias) != (owner, name):
                    self._write(module, alias, original, replacement)

    def copied(self) -> Any:
        """The original if other modules may have copies of it that are to be replaced too, else ``ABSENT``."""
        owner, _, original = self.locate()
        return original if self._may_be_copied(owner, original) else ABSENT

    def placed(self) -> list[tuple[Any, str, Any, Any]]:
        """Where this patch stands: owner, name, what was there, what it put there."""
        return [(*undo, new) for undo, new in zip(self._undo, self._new, strict=True)]

    def _may_be_copied(self, owner: Any, original: Any) -> bool:
        return self.rebind and isinstance(owner, ModuleType) and original is not ABSENT

    def remove(self) -> None:
        """Put everything back as it was."""
        for owner, name, original in reversed(self._undo):
            if original is ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._undo.clear()
        self._new.clear()

    def _write(self, owner: Any, name: str, original: Any, replacement: Any) -> None:
        self._undo.append((owner, name, original))
        self._new.append(replacement)
        if replacement is ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, replacement)


def read(owner: Any, name: str) -> Any:
    """The attribute as it is stored (a ``classmethod`` object stays one), or ``ABSENT``."""
    if isinstance(owner, type):
        for base in owner.__mro__:
            if name in base.__dict__:
                return base.__dict__[name]
        return ABSENT
    return getattr(owner, name, ABSENT)


class Copies:
    """All modules' names for certain objects, found in one look; small constants, shared by chance, do not count."""

    def __init__(self, originals: Iterable[Any]) -> None:
        rich = [one for one in originals if not isinstance(one, (bool, int, float, str, bytes, tuple, type(None)))]
        self._originals = {id(one): one for one in rich}
        self._found: dict[int, list[tuple[ModuleType, str]]] = {number: [] for number in self._originals}
        if not rich:
            return
        for module_name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and module_name.partition(".")[0] != "backend":
                for alias, value in list(vars(module).items()):
                    if id(value) in self._found:
                        self._found[id(value)].append((module, alias))

    def looked_for(self, original: Any) -> bool:
        return id(original) in self._originals

    def of(self, original: Any) -> list[tuple[ModuleType, str]]:
        """Where ``original`` stands under whatever name."""
        return self._found.get(id(original), [])


class PatchSet:
    """All patches of one start: checked together, installed together, removed together."""

    def __init__(self, patches: Iterable[Patch]) -> None:
        self.patches = list(patches)

    def check(self) -> list[Misfit]:
        """Every name that does not fit, required ones first."""
        found = [misfit for patch in self.patches if (misfit := patch.check())]
        return sorted(found, key=lambda misfit: not misfit.required)

    def install(self) -> None:
        """Install every patch that fits; on any failure remove all of them again and raise."""
        try:
            fitting = [patch for patch in self.patches if _fits(patch)]
            copies = Copies([patch.copied() for patch in fitting])
            for patch in fitting:
                patch.install(copies)
        except BaseException:
            self.remove()
            raise

    def undone(self) -> list[str]:
        """What somebody else changed since: names that hold something new again, modules that hold an original."""
        found = []
        originals = []
        placed = [(patch, *place) for patch in self.patches for place in patch.placed()]
        ours = {id(new) for *_, new in placed}
        for patch, owner, name, original, new in placed:
            now = read(owner, name)
            # Two patches of one name add up, and so do classes given to one module.
            if id(now) not in ours and not _derived(now, new):
                found.append(f"{patch.target} was replaced ({getattr(owner, '__name__', owner)}.{name})")
            if patch.rebind and isinstance(owner, ModuleType) and id(original) not in ours:
                originals.append((patch.target, original))
        copies = Copies([original for _, original in originals])
        found += [
            f"{module.__name__}.{alias} still is the original of {target}"
            for target, original in originals
            for module, alias in copies.of(original)
        ]
        return list(dict.fromkeys(found))

    def remove(self) -> None:
        """Remove what was installed, last first."""
        for patch in reversed(self.patches):
            patch.remove()


def _fits(patch: Patch) -> bool:
    misfit = patch.check()
    if misfit is None:
        return True
    if misfit.required:
        raise RuntimeError(f"patch does not fit: {misfit}")
    log.warning("left out: %s", misfit)
    return False


def _derived(found: Any, new: Any) -> bool:
    return isinstance(found, type) and isinstance(new, type) and issubclass(found, new)
