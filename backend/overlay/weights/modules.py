"""Modules over masters: pointing a module's parameters at masters, and pointing them there again when they come back.

Owns what a module remembers (an entry of its ``__dict__`` per parameter) and the rule when that is still true: a
parameter is *clean* while it is the master, or the device copy that was made of it and nobody wrote since. Only
parameters share; buffers are each module's own, because modules write them. Knows no ComfyUI name.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch

from backend.overlay.weights.ledger import Ledger
from backend.overlay.weights.store import Holding, Store

KEY: Final = "_host_masters"

Goal = Callable[..., tuple[torch.device | None, torch.dtype | None] | None]
"""Tells device and dtype from a call's arguments; ``None`` for what is not followed."""


class Kept:
    """One parameter's master, and the parameter that is known to hold the same values."""

    def __init__(self, master: torch.Tensor, holding: Holding, parameter: torch.Tensor) -> None:
        self.master = master
        self.holding = holding
        self.hooked = False
        self._seen: weakref.ref[torch.Tensor] | None = None
        self._address = 0
        self.same_as(parameter)

    def same_as(self, parameter: torch.Tensor | None) -> None:
        """From here on ``parameter`` holds the master's values; ``None``: no parameter does."""
        self._seen = None if parameter is None else weakref.ref(parameter)
        self._address = 0 if parameter is None else parameter.data_ptr()

    def shared(self, parameter: torch.Tensor) -> bool:
        """``parameter`` is the master itself, in its own or another's object."""
        return (
            parameter.device.type == "cpu"
            and parameter.data_ptr() == self.master.data_ptr()
            and parameter.shape == self.master.shape
            and parameter.dtype == self.master.dtype
            and parameter.stride() == self.master.stride()
        )

    def clean(self, parameter: torch.Tensor) -> bool:
        """``parameter`` still holds the master's values."""
        if self.shared(parameter):
            return True
        seen = None if self._seen is None else self._seen()
        return seen is parameter and parameter.data_ptr() == self._address


class Masters(dict[str, Kept]):
    """What one module remembers; a copy of the module has parameters of its own, so it remembers nothing."""

    def __deepcopy__(self, memo: Any) -> "Masters":
        return Masters()

    def __reduce__(self) -> Any:
        return Masters, ()


def masters(module: torch.nn.Module) -> Masters | None:
    """What ``module`` itself remembers, without its children."""
    found = module.__dict__.get(KEY)
    return found or None


def kept(module: torch.nn.Module, name: str) -> Kept | None:
    """What ``module`` remembers of its parameter ``name``."""
    found = masters(module)
    return None if found is None else found.get(name)


def remembering(root: torch.nn.Module) -> list[tuple[torch.nn.Module, Masters]]:
    """Every module of the tree that remembers something."""
    return [(module, found) for module in root.modules() if (found := masters(module)) is not None]


def places(root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Every parameter's name in a state dictionary, its module and its name there; a tied one has several."""
    for prefix, module in root.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():  # noqa: SLF001 (torch's own way around __getattr__)
            if parameter is not None:
                yield (f"{prefix}.{name}" if prefix else name), module, name


def point(module: torch.nn.Module, name: str, master: torch.Tensor) -> torch.Tensor:
    """Let the parameter ``name`` be ``master``; returns the parameter, the same object where torch allows."""
    old = module._parameters[name]  # noqa: SLF001 (as torch's own ``_apply`` does)
    assert old is not None  # noqa: S101 (callers looked)
    if torch._has_compatible_shallow_copy_type(old, master):  # noqa: SLF001 (as torch's own ``_apply`` asks)
        old.data = master
        return old
    made = torch.nn.Parameter(master, requires_grad=old.requires_grad)
    module._parameters[name] = made  # noqa: SLF001 (as above)
    return made


def remember(module: torch.nn.Module, name: str, master: torch.Tensor, holding: Holding) -> None:
    """The parameter ``name`` of ``module`` now holds the values of ``master``."""
    parameter = module._parameters[name]  # noqa: SLF001 (as above)
    assert parameter is not None  # noqa: S101 (callers looked)
    module.__dict__.setdefault(KEY, Masters())[name] = Kept(master, holding, parameter)


def settle(store: Store, root: torch.nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Before ``root`` moves or converts: everything clean that is to be on the CPU becomes its master there.

    What torch does afterwards finds those parameters in place and copies nothing. A conversion becomes the master's:
    the values that come back later are the converted ones.
    """
    for module, found in remembering(root):
        for name, known in list(found.items()):
            parameter = module._parameters.get(name)  # noqa: SLF001 (as above)
            if parameter is None or not known.clean(parameter):
                continue
            if dtype is not None and parameter.dtype != dtype and parameter.dtype.is_floating_point:
                known.master = store.master(known.master, dtype, ("converted",))
            goal = parameter.device if device is None else device
            if goal.type == "cpu" and not known.shared(parameter):
                known.same_as(point(module, name, known.master))


def moved(root: torch.nn.Module, was_clean: Iterable[tuple[torch.nn.Module, str]]) -> None:
    """After ``root`` moved or converted: what was clean before is the same values in its new place."""
    books: dict[int, Ledger] = {}
    for module, name in was_clean:
        known, parameter = kept(module, name), module._parameters.get(name)  # noqa: SLF001 (as above)
        if known is not None and parameter is not None:
            known.same_as(parameter)
            books[id(known.holding.ledger)] = known.holding.ledger
    for book in books.values():
        book.moved()


def clean(root: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Every parameter of the tree that holds its master's values."""
    return [
        (module, name)
        for module, found in remembering(root)
        for name, known in found.items()
        if (parameter := module._parameters.get(name)) is not None and known.clean(parameter)  # noqa: SLF001 (as above)
    ]


def own(module: torch.nn.Module, name: str) -> None:
    """Somebody is about to write the parameter ``name``: it gets memory of its own, with the same values."""
    known, parameter = kept(module, name), module._parameters.get(name)  # noqa: SLF001 (as above)
    if known is None or parameter is None:
        return
    if known.shared(parameter):
        parameter.data = parameter.detach().clone()
        known.holding.ledger.copied()
    known.same_as(None)


def moving(store: Store, original: Callable[..., Any], goal: Goal) -> Callable[..., Any]:
    """A method of ``torch.nn.Module`` that moves or converts."""

    @functools.wraps(original)
    def move(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not remembering(self):
            return original(self, *args, **kwargs)
        target = goal(*args, **kwargs)
        if target is None:
            return original(self, *args, **kwargs)
        device, dtype = target
        before = clean(self)
        settle(store, self, device, dtype)
        result = original(self, *args, **kwargs)
        moved(self, before)
        return result

    return move


def unshare(root: torch.nn.Module, names: Mapping[str, Any]) -> None:
    """Before values are copied into ``root``'s parameters ``names``: none of them may be a master, nor stay clean."""
    if not remembering(root):
        return
    for key, module, name in places(root):
        if key in names:
            found, parameter = masters(module), module._parameters[name]  # noqa: SLF001 (as above)
            known = None if found is None else found.pop(name, None)
            if known is not None and parameter is not None and known.shared(parameter):
                parameter.data = torch.empty_like(parameter)
                known.holding.ledger.copied()
