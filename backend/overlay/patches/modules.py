"""A module's variable that is computed when it is read: by giving the module a class with a property.

Owns that trick alone. A module's own functions do not see it: they read its dictionary directly.
"""

from collections.abc import Callable
from typing import Any


def with_property(name: str, get: Callable[[], Any], put: Callable[[Any], None]) -> Callable[[Any], type]:
    """What a ``Patch`` of ``module:__class__`` puts there; several of them on one module add up."""

    def replace(original: Any) -> type:
        return type(original.__name__, (original,), {name: property(lambda _: get(), lambda _, value: put(value))})

    return replace
