"""Tokenizers of one folder: read once, everybody's own to change, gone with the last who uses them."""

import copy
import gc
import importlib
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backend.overlay.patch import PatchSet
from backend.overlay.patches import tokenizers
from backend.overlay.weights.loading import apart, loading
from backend.overlay.weights.vocabulary import LARGE, Compiled, Vocabularies, state

WORDS = {f"word{number}": number for number in range(LARGE + 10)}

SOURCE = '''
class SDTokenizer:
    def __init__(self, tokenizer_path=None, max_length=77, embedding_directory=None, tokenizer_class=None,
                 tokenizer_args={}):
        self.tokenizer = tokenizer_class.from_pretrained(tokenizer_path, **tokenizer_args)
        self.max_length = max_length
        self.embedding_directory = embedding_directory
        vocab = self.tokenizer.get_vocab()
        self.inv_vocab = {v: k for k, v in vocab.items()}
'''
"""The one constructor, written from its behaviour."""


class Tokenizer:
    """A compiled tokenizer: what can be asked and changed, and how often its words were listed."""

    __module__ = "tokenizers"

    def __init__(self, words: dict[str, int]) -> None:
        self.words = words
        self.truncation: Any = None
        self.encode_special_tokens = False
        self.listed = 0

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        limit = None if self.truncation is None else self.truncation["max_length"]
        return [[self.words[word] for word in text.split()][:limit] for text in texts]

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        self.listed += 1
        return dict(self.words)

    def get_vocab_size(self) -> int:
        return len(self.words)

    def add_tokens(self, words: list[str]) -> int:
        self.words.update({word: len(self.words) + place for place, word in enumerate(words)})
        return len(words)

    def enable_truncation(self, max_length: int) -> None:
        self.truncation = {"max_length": max_length}

    def __deepcopy__(self, memo: Any) -> "Tokenizer":
        # As the real one: what it is told about special tokens is not in its serialised form.
        made = Tokenizer(dict(self.words))
        made.truncation = copy.deepcopy(self.truncation)
        return made


class Fast:
    """A tokenizer around a compiled one."""

    read: ClassVar[list[str]] = []

    def __init__(self, path: str, **kwargs: Any) -> None:
        self.read.append(path)
        self._tokenizer = Tokenizer(dict(WORDS))
        self._tokenizer.encode_special_tokens = True
        self.backend: Any = self._tokenizer
        self.init_kwargs: dict[str, Any] = {"path": path, "nested": [1, 2], **kwargs}
        self.scores = [(word, 0.5) for word in WORDS]
        self.myself = self

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> "Fast":
        return cls(path, **kwargs)

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_batch([text])[0]


class Slow:
    """A tokenizer that is nothing but tables."""

    def __init__(self) -> None:
        self.encoder = dict(WORDS)
        self.ranks = {("a", str(number)): number for number in range(LARGE)}
        self.cache: dict[str, str] = {}
        self.mixed = {number: [number] for number in range(LARGE)}

    @classmethod
    def from_pretrained(cls, path: str) -> "Slow":
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return dict(self.encoder)


class Locked(Slow):
    """A tokenizer that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Foreign(Fast):
    """A custom node's."""


for known in (Fast, Slow, Locked):
    known.__module__ = "transformers.models"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The patched module, with a folder to read and the table behind it."""
    (tmp_path / "sd1_clip_of_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("sd1_clip_of_test")
    for name in ("comfy", "comfy.sd1_clip"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType("comfy") if name == "comfy" else module)
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "vocab.json").write_text("{}")
    vocabularies = Vocabularies()
    installed = PatchSet(tokenizers.patches(vocabularies))
    assert installed.check() == []
    installed.install()
    monkeypatch.setattr(Fast, "read", [])
    yield types.SimpleNamespace(SDTokenizer=module.SDTokenizer, folder=folder, vocabularies=vocabularies)
    installed.remove()
    sys.modules.pop("sd1_clip_of_test")


def encoder(made: Any, kind: type = Fast, **more: Any) -> Any:
    with loading():
        return made.SDTokenizer(str(made.folder), tokenizer_class=kind, **more)


def current(one: Any) -> Any:
    return one.tokenizer._tokenizer.__dict__["_own"].current


def test_a_folder_is_read_once(made: Any) -> None:
    """Two text encoders have tokenizers of their own over one compiled tokenizer; its words are listed once."""
    one, two = encoder(made, embedding_directory=["a"]), encoder(made, max_length=3, embedding_directory=["b"])
    assert Fast.read == [str(made.folder)]
    assert current(one) is current(two)
    assert current(one).listed == 1
    assert one.tokenizer is not two.tokenizer
    assert one.inv_vocab == two.inv_vocab == {number: word for word, number in WORDS.items()}
    assert one.inv_vocab is not two.inv_vocab
    assert (one.max_length, two.max_length, one.embedding_directory, two.embedding_directory) == (77, 3, ["a"], ["b"])
    assert one.tokenizer("word3 word5") == two.tokenizer("word3 word5") == [3, 5]
    assert current(one) is current(two), "asking changed nothing"
    assert isinstance(one.tokenizer._tokenizer, Tokenizer)


def test_who_changes_a_compiled_tokenizer_changes_its_own(made: Any) -> None:
    """New words, switches, parts that are given out: another text encoder, and the next one, see none of it."""
    one, two, three = (encoder(made) for _ in range(3))
    assert one.tokenizer._tokenizer.add_tokens(["mine"]) == 1
    two.tokenizer._tokenizer.enable_truncation(max_length=1)
    three.tokenizer._tokenizer.encode_special_tokens = False
    assert one.tokenizer("mine word2") == [len(WORDS), 2]
    assert one.tokenizer.backend is one.tokenizer._tokenizer, "the same one under both names"
    assert two.tokenizer("word1 word2") == [1]
    assert "mine" in one.tokenizer.get_vocab()
    for other in (three, encoder(made)):
        assert "mine" not in other.tokenizer.get_vocab()
        assert other.tokenizer("word1 word2") == [1, 2]
    assert [one.tokenizer._tokenizer.encode_special_tokens, three.tokenizer._tokenizer.encode_special_tokens] == [
        True, False]
    before = current(encoder(made))
    fourth = encoder(made)
    fourth.tokenizer._tokenizer.words["leaked"] = 1
    assert "leaked" not in before.words, "a part that can be changed was given out"


def test_everything_else_of_a_tokenizer_is_its_own(made: Any) -> None:
    """Small things with all that is inside, tables entry by entry, references to itself."""
    one, two = encoder(made), encoder(made)
    one.tokenizer.init_kwargs["nested"].append(3)
    one.tokenizer.scores.append(("x", 1.0))
    one.inv_vocab[0] = "changed"
    one.tokenizer.get_vocab()["word1"] = 5
    assert two.tokenizer.init_kwargs["nested"] == [1, 2]
    assert len(two.tokenizer.scores) == len(WORDS)
    assert two.inv_vocab[0] == "word0"
    assert one.tokenizer.get_vocab()["word1"] == 1
    assert two.tokenizer.myself is two.tokenizer
    assert two.tokenizer.scores[7] is one.tokenizer.scores[7], "entries are shared"


def test_a_tokenizer_of_tables_is_copied(made: Any) -> None:
    """One without a compiled part: caches and tables are each one's own."""
    one, two = encoder(made, Slow), encoder(made, Slow)
    one.tokenizer.cache["a"] = "b"
    one.tokenizer.encoder["new"] = 1
    one.tokenizer.mixed[0].append(1)
    assert two.tokenizer.cache == {}
    assert "new" not in two.tokenizer.encoder
    assert two.tokenizer.mixed[0] == [0]
    assert next(iter(one.tokenizer.ranks)) is next(iter(two.tokenizer.ranks))


def test_copies_stay_what_they_are(made: Any) -> None:
    """A copy of a tokenizer that a node makes is a compiled tokenizer of its own, with its switches."""
    one = encoder(made)
    copied = copy.deepcopy(one.tokenizer)
    assert type(copied._tokenizer) is Tokenizer
    assert copied._tokenizer is not current(one)
    assert copied._tokenizer.encode_special_tokens is True
    assert type(copy.copy(one.tokenizer._tokenizer)) is Tokenizer
    assert type(one.tokenizer._tokenizer) is Compiled


def test_other_folders_classes_and_arguments_are_others(made: Any, tmp_path: Path) -> None:
    """Also a folder whose files changed."""
    first = encoder(made)
    other = encoder(made, tokenizer_args={"legacy": False})
    assert current(first) is not current(other)
    (made.folder / "vocab.json").write_text("{ }")
    changed = encoder(made)
    assert len(Fast.read) == 3
    assert current(changed) is not current(first)
    before = state(str(made.folder))
    link = tmp_path / "link"
    link.symlink_to(made.folder)
    assert state(str(link)) == before
    with pytest.raises(FileNotFoundError):
        state(str(tmp_path / "none"))


def test_what_nobody_uses_is_gone(made: Any) -> None:
    """With the last text encoder over it; a copied one holds nothing."""
    one, two = encoder(made), encoder(made, Slow)
    assert len(made.vocabularies) == 2
    del one, two
    gc.collect()
    assert len(made.vocabularies) == 0
    encoder(made)
    assert len(Fast.read) == 2


def test_who_is_left_alone(made: Any) -> None:
    """Outside of loaders, in jobs that are kept apart, classes of custom nodes, other things than a path, classes that
    cannot be copied: as in plain ComfyUI."""
    plain = made.SDTokenizer(str(made.folder), tokenizer_class=Fast)
    with apart():
        kept_apart = encoder(made)
    foreign = encoder(made, Foreign)
    nowhere = encoder(made, tokenizer_args={})
    with loading():
        given = made.SDTokenizer(b"words", tokenizer_class=Fast)
        missing = made.SDTokenizer("no such folder", tokenizer_class=Fast)
        unhashable = made.SDTokenizer(str(made.folder), tokenizer_class=Fast, tokenizer_args={"a": []})
    for one in (plain, kept_apart, foreign, given, missing, unhashable):
        assert type(one.tokenizer._tokenizer) is Tokenizer
    assert type(nowhere.tokenizer._tokenizer) is Compiled
    locked = [encoder(made, Locked) for _ in range(2)]
    assert locked[0].tokenizer.encoder is not locked[1].tokenizer.encoder
    assert len(made.vocabularies) == 1


def test_errors_of_reading_are_the_callers(made: Any) -> None:
    """And the next who asks reads again."""

    class Broken(Fast):
        broken = True

        def __init__(self, path: str) -> None:
            if self.broken:
                raise ValueError(path)
            super().__init__(path)

    Broken.__module__ = Fast.__module__
    for _ in range(2):
        with pytest.raises(ValueError, match="words"):
            encoder(made, Broken)
    Broken.broken = False
    assert type(encoder(made, Broken).tokenizer._tokenizer) is Compiled


def test_lanes_that_ask_at_once_read_once(made: Any) -> None:
    """The others wait for the first."""
    found: list[Any] = []
    gate = threading.Barrier(4)

    def load() -> None:
        gate.wait()
        found.append(encoder(made))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Fast.read) == 1
    assert len({id(current(one)) for one in found}) == 1


def test_another_constructor_is_left_alone(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that makes its tokenizer in another way does not fit, and says so."""

    class Other:
        def __init__(self, tokenizer_path: Any = None) -> None:
            self.tokenizer = tokenizer_path

    monkeypatch.setattr(sys.modules["comfy.sd1_clip"], "SDTokenizer", Other)
    (patch,) = tokenizers.patches(Vocabularies())
    misfit = patch.check()
    assert misfit is not None
    assert "from_pretrained" in misfit.problem
    assert not misfit.required
