"""Keys are found on the line where they stand, whatever TOML stands around them."""

import tomllib
from textwrap import dedent

from hypothesis import given
from hypothesis import strategies as st

from gateway.settings.lines import Path, line_of, locate

TRICKY = dedent(
    """\
    # a = 1
    a = "[not] # a table"
    "b c".d = '''
    x = 1
    [y]
    ''''

    [listen]  # comment
    host = [ "#", # ]
      '''a'''', ']', \"\"\"b\"\"\"\", "]", # "
      [1, {k = "}"}],
    ]
    ports . "gpu" = {x = 1, y = [1,
      2]}
    'quoted key' = \"\"\"
    \\\"\"\" [z]
    \"\"\"
      [rate . "sub\\u006dit"]
    burst = 1979-05-27T07:32:00Z
    [[array.of]]
    last = 1
    [[array.of]]
    last = 2"""
)


def test_tricky_document() -> None:
    """Strings of all four sorts, comments, nested arrays and inline tables hide no key and invent none."""
    tomllib.loads(TRICKY)
    assert locate(TRICKY) == {
        ("a",): 2,
        ("b c",): 3,
        ("b c", "d"): 3,
        ("listen",): 8,
        ("listen", "host"): 9,
        ("listen", "ports"): 13,
        ("listen", "ports", "gpu"): 13,
        ("listen", "quoted key"): 15,
        ("rate",): 18,
        ("rate", "submit"): 18,
        ("rate", "submit", "burst"): 19,
        ("array",): 20,
        ("array", "of"): 20,
        ("array", "of", "last"): 21,
        ("array", "of", "2"): 22,
        ("array", "of", "2", "last"): 23,
    }


def test_nearest_place() -> None:
    """Inside an inline table the key's own line stands; of what is nowhere in the file, none."""
    found = locate(TRICKY)
    assert line_of(found, ("listen", "ports", "gpu", "y")) == 13
    assert line_of(found, ("nowhere", "x")) == 0


VALUES = st.sampled_from(
    [
        "1",
        "true",
        '"a"',
        '"\\" = # ["',
        "'\\'",
        "[]",
        "[1, # x ]\n2]",
        '"""\n[t]\nk = 1"""',
        "'''\n'''",
        "{a = [1,\n2]}",
    ]
)
KEYS = st.sampled_from(["a", "b-1", '"c.d"', "'e f'", "3"])


@given(st.lists(st.tuples(st.booleans(), VALUES, st.sampled_from(["", " # x = 1", "\n\n", "\n# [y]"])), max_size=20))
def test_lines_are_counted(statements: list[tuple[bool, str, str]]) -> None:
    """In any sequence of tables and values every key is found on its line."""
    text = ""
    table: Path = ()
    path: Path
    expected: dict[Path, int] = {}
    for number, (header, value, after) in enumerate(statements):
        line = text.count("\n") + 1
        if header:
            path = table = (f"t{number}",)
            text += f" [t{number}]{after}\n"
        else:
            path = (*table, f"k{number}")
            text += f"k{number} = {value}{after}\n"
        expected[path] = line
    tomllib.loads(text)
    assert locate(text) == expected


@given(st.text(alphabet="ab.=[]{}\"'#\\\n \r", max_size=60))
def test_ends_on_anything(text: str) -> None:
    """Even text that is no TOML is gone through without an exception."""
    assert all(1 <= line <= text.count("\n") + 1 for line in locate(text).values())


@given(KEYS, KEYS)
def test_quoted_keys(first: str, second: str) -> None:
    """Quoted keys are found under the name that tomllib gives them."""
    text = f"\n[{first}]\n{second} = 1"
    ((table, inner),) = tomllib.loads(text).items()
    assert locate(text)[table, next(iter(inner))] == 3
