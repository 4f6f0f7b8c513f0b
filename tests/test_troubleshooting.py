"""The page on troubleshooting speaks in the words of the messages, and those are still said."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?:it says )?`([^`]*)` \|", re.MULTILINE)


def said() -> str:
    """Every text in the sources, joined as Python joins it; what is filled in is an ellipsis."""
    found = []
    for path in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "backend").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[ds]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
                found.append("".join(map(str, parts)))
    return "\n".join(found)


def test_every_message_on_the_page_is_one_that_is_said():
    """A message that was reworded, or is gone, leaves nobody looking for it in vain."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = ROW.findall(page)
    assert len(messages) > 20
    words = said()
    unsaid = [text for text in messages if not all(part.strip() in words for part in text.split("…"))]
    assert not unsaid
