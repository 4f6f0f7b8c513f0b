"""Tokenizers of one folder: read once, and for each text encoder a tokenizer of its own over the same tables.

Owns what is shared: the compiled tokenizer (``tokenizers.Tokenizer``) as long as nobody changes it, and the entries of
large tables. All else of a tokenizer is copied, so that whoever changes one changes no other. Everything is held
weakly here: what no text encoder uses is gone. Knows no name of ComfyUI or of transformers.
"""

import copy
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("backend.overlay")

LARGE: Final = 256
"""Entries from which a table is copied as it is; smaller ones are copied with all that is inside."""
_ATOMS: Final = (str, bytes, int, float, bool, type(None))
_READING: Final = frozenset({
    *("encode", "encode_batch", "encode_batch_fast", "decode", "decode_batch", "post_process"),
    *("async_encode", "async_encode_batch", "async_encode_batch_fast", "async_decode_batch"),
    *("token_to_id", "id_to_token", "get_vocab_size", "get_added_tokens_decoder", "num_special_tokens_to_add"),
    *("to_str", "save"),
    *("truncation", "padding", "encode_special_tokens"),
})
"""What neither changes a compiled tokenizer nor gives out a part of it that can be changed."""


class Compiled:
    """A compiled tokenizer as its text encoder sees it: the shared one, until something may change it, then a copy."""

    def __init__(self, vocabulary: "Vocabulary", shared: Any) -> None:
        self.__dict__["_own"] = _Own(vocabulary, shared)

    def __getattr__(self, name: str) -> Any:
        own: _Own = self.__dict__["_own"]
        return getattr(own.current if name in _READING else own.changeable(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_own"].changeable(), name, value)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """A dictionary of the caller's own."""
        return self.__dict__["_own"].vocab(with_added_tokens)  # type: ignore[no-any-return]  # an untyped dictionary

    @property  # type: ignore[misc]  # what is asked whether it is one says yes
    def __class__(self) -> type:
        return type(self.__dict__["_own"].current)

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__dict__["_own"].copied()

    def __reduce__(self) -> Any:
        return copy.copy, (self.__dict__["_own"].copied(),)

    def __repr__(self) -> str:
        return repr(self.__dict__["_own"].current)

    def __str__(self) -> str:
        return str(self.__dict__["_own"].current)


class _Own:
    """What one ``Compiled`` stands for now."""

    def __init__(self, vocabulary: "Vocabulary", shared: Any) -> None:
        self.current = shared
        self._vocabulary: Vocabulary | None = vocabulary
        self._lock = threading.Lock()

    def changeable(self) -> Any:
        """The copy of its own, made now if there is none yet."""
        with self._lock:
            if self._vocabulary is not None:
                self.current = self.copied()
                self._vocabulary = None
            return self.current

    def copied(self) -> Any:
        made = copy.deepcopy(self.current)
        # Part of what encoding depends on, but not of what is copied.
        special = getattr(self.current, "encode_special_tokens", None)
        if special is not None:
            made.encode_special_tokens = special
        return made

    def vocab(self, added: bool) -> dict[str, int]:
        shared = self._vocabulary
        if shared is None:
            return dict(self.current.get_vocab(with_added_tokens=added))
        return shared.words(self.current, added)


class Vocabulary:
    """One tokenizer that is only ever copied from."""

    def __init__(self, prototype: Any) -> None:
        self._prototype = prototype
        self._tables = frozenset(name for name, value in vars(prototype).items() if _table(value))
        self._words: dict[tuple[int, bool], dict[str, int]] = {}
        self._lock = threading.Lock()

    def tokenizer(self) -> Any:
        """A tokenizer of the caller's own; raises what copying raises."""
        made = self._prototype.__class__.__new__(self._prototype.__class__)
        memo: dict[int, Any] = {id(self._prototype): made}
        for value in vars(self._prototype).values():
            if _compiled(value):
                memo[id(value)] = Compiled(self, value)
        for name, value in vars(self._prototype).items():
            made.__dict__[name] = value.copy() if name in self._tables else copy.deepcopy(value, memo)
        return made

    def words(self, compiled: Any, added: bool) -> dict[str, int]:
        """The shared tokenizer's words and their numbers, asked for once."""
        with self._lock:
            found = self._words.get((id(compiled), added))
            if found is None:
                found = self._words[id(compiled), added] = compiled.get_vocab(with_added_tokens=added)
        return found.copy()

    def __deepcopy__(self, memo: Any) -> "Vocabulary":
        return self


class Vocabularies:
    """Every vocabulary some text encoder uses; may be called from any thread."""

    def __init__(self) -> None:
        self._found: weakref.WeakValueDictionary[Any, Vocabulary] = weakref.WeakValueDictionary()
        self._unfit: set[Any] = set()
        self._reading: dict[Any, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self._found)

    def tokenizer(self, key: Any, read: Callable[[], Any]) -> tuple[Any, Vocabulary | None]:
        """A tokenizer of the caller's own, and the vocabulary to keep as long as it is used.

        The first who asks reads it. A kind that cannot be copied is read by everybody, and has no vocabulary.
        """
        with self._reading.setdefault(key, threading.Lock()):
            found = self._found.get(key)
            if key in self._unfit:
                return read(), None
            prototype = None if found is not None else read()
            try:
                found = found or Vocabulary(prototype)
                made = found.tokenizer()
            except Exception as error:  # noqa: BLE001 (whatever a foreign class does when it is copied)
                log.debug("weights: a tokenizer is not shared: %s", error)
                self._unfit.add(key)
                return read() if prototype is None else prototype, None
            self._found[key] = found
            return made, found


def state(path: str) -> tuple[Any, ...]:
    """What makes two paths the same contents: where they lead, and each file's name, time (ns) and size (bytes).

    Raises ``OSError`` when there is nothing.
    """
    real = Path(path).resolve(strict=True)
    files = sorted(real.iterdir()) if real.is_dir() else [real]
    return str(real), tuple((file.name, (status := file.stat()).st_mtime_ns, status.st_size) for file in files)


def _compiled(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "tokenizers" and type(value).__name__ == "Tokenizer"


def _table(value: Any) -> bool:
    """A large container of nothing that could be changed: a copy of it needs no copies of its entries."""
    if type(value) not in {dict, list, set} or len(value) < LARGE:
        return False
    return all(map(_atom, value)) and (type(value) is not dict or all(map(_atom, value.values())))


def _atom(value: Any) -> bool:
    return type(value) in _ATOMS or (type(value) is tuple and all(map(_atom, value)))
