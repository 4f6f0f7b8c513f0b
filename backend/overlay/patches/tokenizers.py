"""ComfyUI's text encoders: the tables of their tokenizers are read once for all lanes.

Owns where ComfyUI makes tokenizers, and whose may be shared. What of one is shared is the business of ``weights``.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

from backend.overlay.fingerprints import uses
from backend.overlay.patch import Patch, params_start
from backend.overlay.weights.loading import current
from backend.overlay.weights.vocabulary import Vocabularies, Vocabulary, state

_KEPT: Final = "_host_vocabulary"
_KNOWN: Final = ("transformers.", "comfy.")
"""Whose classes may be shared: a custom node's may keep anything in a tokenizer."""


def patches(vocabularies: Vocabularies) -> list[Patch]:
    """The one constructor; left out alone if it is not as expected."""
    return [
        Patch(
            "comfy.sd1_clip:SDTokenizer.__init__",
            functools.partial(_init, vocabularies),
            "each lane would read, and keep, the tables of its tokenizers",
            _shape,
            required=False,
        )
    ]


def _shape(original: Any) -> str | None:
    reads = uses("tokenizer_class.from_pretrained(tokenizer_path, **tokenizer_args)")
    return params_start("self", "tokenizer_path")(original) or reads(original)


class _Sharing:
    """Stands for a tokenizer class where ComfyUI asks it to read a folder."""

    def __init__(self, vocabularies: Vocabularies, kind: Any) -> None:
        self._vocabularies = vocabularies
        self._kind = kind
        self.vocabulary: Vocabulary | None = None

    def from_pretrained(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the class's own; the result is the caller's."""
        original = self._kind.from_pretrained
        if not isinstance(path, str) or args:
            return original(path, *args, **kwargs)
        try:
            key = (self._kind, state(path), tuple(sorted(kwargs.items())))
            hash(key)
        except (OSError, TypeError):
            return original(path, **kwargs)
        made, self.vocabulary = self._vocabularies.tokenizer(key, lambda: original(path, **kwargs))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


def _init(vocabularies: Vocabularies, original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (it stands in a class)
        call = signature.bind(self, *args, **kwargs) if current() is not None else None
        kind = None if call is None else _kind(call)
        if call is None or kind is None:
            original(self, *args, **kwargs)
            return
        sharing = _Sharing(vocabularies, kind)
        call.arguments["tokenizer_class"] = sharing
        original(*call.args, **call.kwargs)
        if sharing.vocabulary is not None:
            self.__dict__[_KEPT] = sharing.vocabulary

    return __init__


def _kind(call: inspect.BoundArguments) -> Any:
    """The tokenizer class this constructor is given, if such may be shared."""
    call.apply_defaults()
    found = call.arguments.get("tokenizer_class")
    return found if isinstance(found, type) and found.__module__.startswith(_KNOWN) else None
