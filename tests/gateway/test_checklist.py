"""The table of docs/http.md: every rule names tests that exist, or says that it is not offered."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = 105

ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"`(test_\w+)::(test_\w+)`")


def rows() -> list[tuple[int, str, str]]:
    """Number, rule and last cell of each row."""
    text = (ROOT / "docs/http.md").read_text(encoding="utf-8")
    table = text.partition("## The checklist")[2].partition("\n## ")[0]
    return [(int(number), rule, cell) for number, rule, cell in ROW.findall(table)]


def known() -> set[tuple[str, str]]:
    """Every test there is, by the name of its file and its own."""
    return {
        (file.stem, node.name)
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_is_there_once():
    """The list is whole: no rule was dropped because nobody had a test for it."""
    assert Counter(number for number, _, _ in rows()) == Counter(range(1, ROWS + 1))


def test_every_rule_names_tests_that_exist():
    """A test that is renamed takes its row along; a rule without one says that it is not offered."""
    tests = known()
    wrong = []
    for number, rule, cell in rows():
        named = NAME.findall(cell)
        wrong += [f"{number}: there is no {file}::{name}" for file, name in named if (file, name) not in tests]
        if not named and not cell.startswith("not offered: "):
            wrong.append(f"{number}: {rule} has neither a test nor a reason")
    assert wrong == []
