"""Keys: recognised by what they are, kept as hashes, added and revoked in one file."""

import json
import stat
from pathlib import Path

import pytest

from gateway.auth import command
from gateway.auth.keys import KeyFile, KeyFileError, Quota, Ring, Scope, added, make, without


def test_a_key_is_found_by_its_secret_alone():
    """Neither another's secret, nor the id with a wrong secret, nor anything else is a key."""
    key, token = make("anna", Scope.READ, Quota(), 1.0)
    other, _ = make("ben", Scope.ADMIN, Quota(), 2.0)
    ring = Ring([key, other])
    assert ring.find(token) == key
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for shown in (wrong, token + "x", token[4:], "", "cgw_", "ü" * 60, token.replace(key.id, other.id)):
        assert ring.find(shown) is None
    assert token.split("_", 2)[2] not in repr(ring.all)


def test_scopes_include_the_lesser_ones():
    """Who may administer may submit and read; who may read may only read."""
    key, _ = make("anna", Scope.SUBMIT, Quota(), 1.0)
    assert [key.allows(scope) for scope in Scope] == [True, True, False]


@pytest.mark.parametrize("name", ["", "-x", "a b", "ä", "x" * 65, "a\nb"])
def test_names_are_plain(name: str):
    """A name stands in logs, metrics and files."""
    with pytest.raises(ValueError, match="cannot name a key"):
        make(name, Scope.READ, Quota(), 0.0)


def test_the_file_keeps_no_secret_and_is_its_owners(tmp_path: Path):
    """What is saved is what is read, with the hash in the secret's place; nobody else may read it."""
    file = KeyFile(tmp_path / "auth")
    key, token = make("anna", Scope.ADMIN, Quota(1.5, 2, 3600.0), 1.0)
    file.save([key])
    assert file.load().all == (key,)
    assert token.split("_", 2)[2] not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_no_file_is_no_keys(tmp_path: Path):
    """Whoever has made none needs none."""
    assert not KeyFile(tmp_path).load()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": 3}', '{"keys": [{}]}', '{"keys": [{"scope": "god"}]}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str):
    """Reading half a file must not let everybody in."""
    file = KeyFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        file.load()


def test_revoking_ends_a_key_and_frees_its_name():
    """A revoked key stays in the file, is not found, and its name can be had again."""
    key, token = make("anna", Scope.READ, Quota(), 1.0)
    ring = Ring([key])
    with pytest.raises(ValueError, match="already"):
        added(ring, make("anna", Scope.READ, Quota(), 2.0)[0])
    gone = Ring(without(ring, "anna", 3.0))
    assert not gone
    assert gone.find(token) is None
    again, token2 = make("anna", Scope.READ, Quota(), 4.0)
    assert Ring(added(gone, again)).find(token2) == again
    with pytest.raises(ValueError, match="no key named"):
        without(gone, "anna", 5.0)


def test_the_command_shows_a_key_once(tmp_path: Path):
    """It is printed when it is made; the list has name, scope, state and quota."""
    token, text = command.add(tmp_path, "anna", Scope.SUBMIT, Quota(2.0, 3, 60.0))
    assert KeyFile(tmp_path).load().find(token)
    assert token not in text
    (row,) = [line for line in command.show(tmp_path) if line.startswith("anna")]
    assert "good" in row
    assert "2/s, 3 jobs, 60 GPU-s/day" in row
    command.revoke(tmp_path, "anna")
    assert any("revoked" in line for line in command.show(tmp_path))
    assert token not in json.dumps(command.show(tmp_path))
