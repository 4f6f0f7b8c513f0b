"""ComfyUI's ways of changing single weights, over masters: each writes memory of its own, and puts masters back.

Owns the wrappers of ``copy_to_param`` and of the model patcher's weight functions. Knows a patcher by ``model``,
``patches``, ``backup``, ``hook_backup`` and ``offload_device``.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, Final

import torch

from backend.overlay.weights import modules

Original = Callable[..., Any]

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)
_Backup: Final = collections.namedtuple("_Backup", ["weight", "inplace_update"])


def _place(root: Any, key: str) -> tuple[torch.nn.Module, str] | None:
    """The module and the parameter's name that ``key`` means, if a master stands behind it."""
    path, _, name = key.rpartition(".")
    owner = root
    for part in path.split(".") if path else ():
        owner = getattr(owner, part, None)
    if not isinstance(owner, torch.nn.Module):
        return None
    return (owner, name) if modules.kept(owner, name) is not None else None


def _make_own(root: Any, key: str) -> None:
    """Before the weight that ``key`` means is written in place: nobody else may look at its memory."""
    place = _place(root, key)
    if place is not None:
        modules.own(*place)
        return
    path, _, name = key.rpartition(".")
    owner = root.get_submodule(path) if isinstance(root, torch.nn.Module) and path else root
    value = getattr(owner, name, None)
    if isinstance(value, torch.Tensor) and type(value) not in _PLAIN and value.device.type == "cpu":
        # Quantized weights keep their tensors inside, which may be a file's.
        setattr(owner, name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))


def _clean(place: tuple[torch.nn.Module, str] | None) -> modules.Kept | None:
    """What is kept of the parameter, if that still holds the master's values."""
    if place is None:
        return None
    module, name = place
    kept, parameter = modules.kept(module, name), module._parameters.get(name)  # noqa: SLF001 (torch's own way)
    return kept if kept is not None and parameter is not None and kept.clean(parameter) else None


def copying(original: Original) -> Original:
    """``copy_to_param``: what it writes is no master any more."""

    @functools.wraps(original)
    def copy_to_param(obj: Any, attr: str, value: Any) -> Any:
        _make_own(obj, attr)
        return original(obj, attr, value)

    return copy_to_param


def patching(original: Original) -> Original:
    """``patch_weight_to_device``: the backup of a weight on the GPU is its master, not another host copy."""

    @functools.wraps(original)
    def patch_weight_to_device(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        inplace = self.weight_inplace_update or kwargs.get("inplace_update", len(args) > 1 and args[1])
        only_asked = kwargs.get("return_weight", len(args) > 2 and args[2])
        if key not in self.patches or only_asked:
            return original(self, key, *args, **kwargs)
        if inplace:
            _make_own(self.model, key)
        kept = None if inplace or key in self.backup else _clean(_place(self.model, key))
        if kept is not None and torch.device(self.offload_device).type == "cpu":
            self.backup[key] = _Backup(kept.master, False)
        return original(self, key, *args, **kwargs)

    return patch_weight_to_device


def hooking(position: int) -> Callable[[Original], Original]:
    """``patch_hook_weight_to_device`` and its cached sister: which weights held their masters before.

    ``position`` is where ``key`` stands among the arguments, ``self`` not counted.
    """

    def replace(original: Original) -> Original:
        @functools.wraps(original)
        def hook_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
            key = kwargs["key"] if "key" in kwargs else args[position - 1]
            place = _place(self.model, key)
            kept = None if key in self.hook_backup else _clean(place)
            # Not only ``copy_to_param`` writes here: a module may bring a writer of its own.
            _make_own(self.model, key)
            result = original(self, *args, **kwargs)
            if kept is not None and key in self.hook_backup:
                kept.hooked = True
            elif kept is not None:
                _back(place, kept)
            return result

        return hook_weight

    return replace


def unhooking(original: Original) -> Original:
    """``unpatch_hooks``: weights that held their masters before the hooks hold them again."""

    @functools.wraps(original)
    def unpatch_hooks(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = list(self.hook_backup)
        result = original(self, *args, **kwargs)
        for key in before:
            place = None if key in self.hook_backup else _place(self.model, key)
            if place is not None:
                kept = modules.kept(*place)
                if kept is not None and kept.hooked:
                    kept.hooked = False
                    _back(place, kept)
        return result

    return unpatch_hooks


def _back(place: tuple[torch.nn.Module, str] | None, kept: modules.Kept) -> None:
    if place is None:
        return
    module, name = place
    parameter: Any = module._parameters.get(name)  # noqa: SLF001 (torch's own way)
    if parameter is not None and parameter.device.type == "cpu" and not kept.shared(parameter):
        parameter = modules.point(module, name, kept.master)
    kept.same_as(parameter)
