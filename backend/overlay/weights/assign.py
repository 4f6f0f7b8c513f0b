"""``load_state_dict`` inside a loader: parameters become masters instead of taking a copy of them.

Owns which entries of a state dictionary are taken so. Everything torch and the modules themselves do with state
dictionaries (names, hooks, missing and unexpected keys) stays theirs. Knows no ComfyUI name.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from backend.overlay.weights import modules
from backend.overlay.weights.loading import Loading
from backend.overlay.weights.store import Holding, Store

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)

Original = Callable[..., Any]


def load(store: Store, loading: Loading, original: Original, root: torch.nn.Module, state: Mapping[str, Any],
         strict: bool) -> Any:
    """What ``original`` (``Module.load_state_dict``) returns; ``state`` stays as it is."""
    targets = {key: (module, name) for key, module, name in modules.places(root)}
    tied = _tied(targets)
    own, taken = _prepared(store, loading, root, state, targets)
    result = original(root, own, strict=strict, assign=True)
    _tie_again(tied)
    _remember(store, root, targets, taken, store.held(loading.files))
    return result


def _tied(targets: Mapping[str, tuple[torch.nn.Module, str]]) -> list[list[tuple[torch.nn.Module, str, Any]]]:
    """Groups of places that are one parameter: assigning to one of them alone would tear them apart."""
    groups: dict[int, list[tuple[torch.nn.Module, str, Any]]] = {}
    for module, name in targets.values():
        parameter = module._parameters[name]  # noqa: SLF001 (torch's own way around __getattr__)
        groups.setdefault(id(parameter), []).append((module, name, parameter))
    return [group for group in groups.values() if len(group) > 1]


def _tie_again(tied: list[list[tuple[torch.nn.Module, str, Any]]]) -> None:
    for group in tied:
        # Copying would have left the values of the place that was written last.
        new = [now for module, name, old in group if (now := module._parameters.get(name)) is not old]  # noqa: SLF001
        for module, name, _ in group if new else ():
            module._parameters[name] = new[-1]  # noqa: SLF001 (as above)


def _prepared(
    store: Store,
    loading: Loading,
    root: torch.nn.Module,
    state: Mapping[str, Any],
    targets: Mapping[str, tuple[torch.nn.Module, str]],
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state dictionary to assign from, and the masters in it by their key."""
    own: dict[str, Any] = dict(state)
    taken: dict[str, torch.Tensor] = {}
    buffers = _buffers(root)
    files = tuple(file.key for file in loading.files)
    for key, value in state.items():
        if type(value) not in _PLAIN:
            continue
        place = targets.get(key)
        parameter = None if place is None else place[0]._parameters[place[1]]  # noqa: SLF001 (as above)
        if parameter is None:
            buffer = buffers.get(key)
            if buffer is not None and buffer.device.type != "meta":
                own[key] = value.to(device=buffer.device, dtype=buffer.dtype, copy=True)
        elif _shareable(parameter, value):
            origin = (files, type(root).__qualname__, key)
            taken[key] = own[key] = store.master(value.detach(), parameter.dtype, origin)
        elif type(parameter) is torch.nn.Parameter and parameter.device.type != "meta":
            # Assigned as copying would have left it: on the parameter's device, in its type, in memory of its own.
            own[key] = value.to(device=parameter.device, dtype=parameter.dtype, copy=True)
    metadata = getattr(state, "_metadata", None)
    return (_WithMetadata(own, metadata) if metadata is not None else own), taken


class _WithMetadata(dict[str, Any]):
    """A state dictionary with the versions of its modules, where torch looks for them."""

    def __init__(self, values: Mapping[str, Any], metadata: Any) -> None:
        super().__init__(values)
        self._metadata = metadata


def _buffers(root: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(root.named_buffers(remove_duplicate=False))


def _shareable(parameter: torch.Tensor, value: torch.Tensor) -> bool:
    """A plain host parameter, stored row by row, of the value's shape; converting must not change what it means."""
    return (
        type(parameter) is torch.nn.Parameter
        and parameter.device.type == "cpu"
        and value.device.type == "cpu"
        and parameter.is_contiguous()
        and parameter.shape == value.shape
        and value.layout is torch.strided
        and value.numel() > 0
    )


def _remember(
    store: Store,
    root: torch.nn.Module,
    targets: Mapping[str, tuple[torch.nn.Module, str]],
    taken: Mapping[str, torch.Tensor],
    holding: Holding,
) -> None:
    found: dict[int, torch.Tensor] = {}
    for key, master in taken.items():
        module, name = targets[key]
        parameter = module._parameters.get(name)  # noqa: SLF001 (as above)
        if parameter is not None and parameter.data_ptr() == master.data_ptr():
            found[id(parameter)] = master
    counted: set[int] = set()
    references: dict[int, weakref.ref[torch.nn.Module]] = {}
    # Tied parameters stand in several places under one object, and the dictionary may name only one of them. Modules
    # that fill themselves may have taken a tensor as it was: that is a master too, and nobody may write it.
    for _, module, name in modules.places(root):
        parameter = module._parameters[name]  # noqa: SLF001 (as above)
        if type(parameter) is not torch.nn.Parameter:
            continue
        known = found.get(id(parameter))
        if known is None and modules.kept(module, name) is None and store.is_master(parameter):
            known = parameter.detach()
        if known is None:
            continue
        modules.remember(module, name, known, holding)
        holding.places.append((references.setdefault(id(module), weakref.ref(module)), name))
        if id(parameter) not in counted:
            counted.add(id(parameter))
            _count(store, known, holding)
    holding.ledger.moved()


def _count(store: Store, master: torch.Tensor, holding: Holding) -> None:
    file = store.file_of(master)
    if file is not None and file.mapped:
        holding.mapped += master.nbytes
    else:
        holding.anonymous += master.nbytes
