"""What ``comfy-gateway check`` says, as nginx -t would."""

from pathlib import Path

from gateway.check import check, failed, render


def test_good_file(tmp_path: Path) -> None:
    """A file without mistakes is ok."""
    path = tmp_path / "c.toml"
    path.write_text("[log]\naccess = false\n")
    assert check(path) == []
    assert render(path, []) == f"{path}: ok"


def test_bad_file(tmp_path: Path) -> None:
    """Each mistake is a line, and the last line counts them."""
    path = tmp_path / "c.toml"
    path.write_text("[log]\nacess = false\nlevel = 1\n")
    problems = check(path)
    assert failed(problems)
    assert render(path, problems).splitlines() == [
        f"{path}:2: [log] acess: unknown key; did you mean access?",
        f"{path}:3: [log] level: must be a string, not a whole number",
        f"{path}: 2 errors; the gateway will not start with it",
    ]


def test_warnings_pass(tmp_path: Path) -> None:
    """A warning is shown and does not fail the check."""
    path = tmp_path / "c.toml"
    path.write_text("listen.host = '0.0.0.0'\nauth.allow_open = true\n")
    problems = check(path)
    assert not failed(problems)
    first, _, last = render(path, problems).splitlines()
    assert "warning: [listen] host" in first
    assert last == f"{path}: ok"
