"""The last lines of a backend: how many, how long, and what is not in them."""

import pytest

from gateway.observe.tail import KEPT, LONGEST, Tail, masked, passed


def test_only_the_last_lines_are_kept_and_numbers_go_on():
    """A reader who comes late gets what is there; one who has it all gets nothing."""
    tail = Tail()
    for number in range(KEPT + 10):
        tail.add(f"line {number}")
    assert tail.newest == KEPT + 10
    lines = tail.after(0)
    assert (len(lines), lines[0].number, lines[-1].text) == (KEPT, 11, f"line {KEPT + 9}")
    assert tail.after(KEPT + 10) == []
    assert [line.number for line in tail.after(KEPT + 8)] == [KEPT + 9, KEPT + 10]
    tail.add("x" * 10 * LONGEST)
    assert len(tail.after(KEPT + 10)[0].text) == LONGEST


def test_lines_go_on_to_whom_they_went():
    """Behind the backend's name, and whole."""
    tail, heard = Tail(), list[str]()
    passed(heard.append, tail, "1 | ")("token=abcdefgh")
    assert heard == ["1 | token=abcdefgh"]
    assert tail.after(0)[0].text == "token=***"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("key cgw_a1-B_2 is good", "key cgw_*** is good"),
        ("Authorization: Bearer abcdefghij.klm", "Authorization: Bearer ***"),
        ('{"api_key": "sesame-open", "x": 1}', '{"api_key": "***", "x": 1}'),
        ("GET /x?token=abcd1234&y=1", "GET /x?token=***&y=1"),
        ("http://user:geheim@host/x", "http://user:***@host/x"),
        ("login with hf_abcdefghijklmnopqrstu", "login with ***"),
        ("prompt of 77 tokens: 3.5 s", "prompt of 77 tokens: 3.5 s"),
        ("100%|████| 20/20 [00:01<00:00]", "100%|████| 20/20 [00:01<00:00]"),
    ],
)
def test_what_looks_like_a_credential_is_not_kept(line: str, kept: str):
    """Keys of ours, bearers, values behind telling names, passwords in addresses; nothing else."""
    assert masked(line) == kept
