"""The shape of the house, enforced: who may import whom, what a module looks like, and who owns tasks.

Every excuse stands in a list here with its reason; the number of excuses only goes down.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RUNGS = [
    "gateway",
    "gateway.build",
    "gateway.spec",
    "gateway.webhook",
    "gateway.schedule",
    "gateway.config_cache",
    "gateway.config_auth",
    "gateway.config_tracing",
    "gateway.config",
    "gateway.layout",
    "gateway.errors",
    "gateway.request",
    "gateway.forwarded",
    "gateway.settings",
    "gateway.config_load",
    "gateway.ratelimit",
    "gateway.wire",
    "gateway.cache",
    "gateway.auth",
    "gateway.check",
    "gateway.observe",
    "gateway.fleet",
    "gateway.jobs",
    "gateway.spread",
    "gateway.api",
    "gateway.dashboard",
    "gateway.ws_bridge",
    "gateway.ws_keep",
    "gateway.ws_confluence",
    "gateway.ws_confluences",
    "gateway.service",
    "gateway.handover",
    "gateway.proxy",
    "gateway.server",
    "gateway.process",
    "gateway.reload",
    "gateway.banner",
    "gateway.opening",
    "gateway.automatic",
    "gateway.systemd",
    "gateway.app",
    "gateway.run",
    "gateway.tools",
    "gateway.cli",
    "gateway.__main__",
]
"""From the bottom up. A package is one rung; inside it imports may go either way, but not in circles."""

MODULE_LINES = 300
MODULE_LINES_AT_MOST = 420
LONG_MODULES = 7
"""Modules above MODULE_LINES. Parsers and protocols are better in one piece; the number only goes down."""

FUNCTION_LINES = 80

LOOP_TASKS: dict[str, str] = {
    "gateway.wire.pool": "dials are cancelled by name through the pool's own set, which close() empties",
    "gateway.wire.own": "an own route's task ends with its request: answered, or cancelled when the client leaves",
}
"""Modules that make a task other than in a task group, and who ends it."""

ONLY_BACKEND = {"torch", "numpy", "PIL", "safetensors"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of both programs by its dotted name, parsed."""
    found = {}
    for package in ("gateway", "backend"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def source(name: str) -> str:
    file = ROOT.joinpath(*name.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def imports(name: str) -> set[str]:
    """Full names of what a module imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else node.module)
    return found - {name}


def rung(name: str) -> int:
    """The place of a module on the ladder; fails for one that has none."""
    while name not in RUNGS:
        name, dot, _ = name.rpartition(".")
        assert dot, "a new file at the root of gateway/ needs its place in RUNGS"
        if name == "gateway":
            pytest.fail("a new file at the root of gateway/ needs its place in RUNGS")
    return RUNGS.index(name)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def promises(tree: ast.Module) -> Iterator[ast.AST]:
    """What the protocols of a module ask of others: declared there, done elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "Protocol" in {ast.unparse(base) for base in node.bases}:
            yield from ast.walk(node)


def test_gateway_imports_only_from_rungs_below():
    """The files of the gateway can be read in order: none needs one that comes later."""
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if name.startswith("gateway")
        for other in imports(name)
        if other.startswith("gateway") and rung(other) > rung(name)
    ]
    assert wrong == []


def test_the_two_programs_never_import_each_other():
    """They meet at a command line, a port and a contract."""
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        for other in imports(name)
        if {name.split(".")[0], other.split(".")[0]} == {"gateway", "backend"}
    ]
    assert wrong == []


def test_only_the_backend_imports_torch():
    """The gateway starts without any of the engine's libraries."""
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if name.startswith("gateway")
        for other in imports(name)
        if other.split(".")[0] in ONLY_BACKEND
    ]
    assert wrong == []


def test_there_are_no_import_cycles():
    """Imports inside functions count as well: a circle hidden there is one all the same."""
    graph = {name: {other for other in imports(name) if other in modules()} for name in modules()}
    for name, targets in graph.items():
        # Importing a.b runs a's own module first, which must not need a.b.
        targets.discard(name.rpartition(".")[0])
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_every_module_opens_with_its_law():
    """The first lines say what the module owns."""
    wrong = [name for name, tree in modules().items() if tree.body and not ast.get_docstring(tree)]
    assert wrong == []


def test_modules_stay_readable_in_one_sitting():
    """Up to MODULE_LINES; the few longer ones are counted, and bounded too."""
    lengths = {name: source(name).count("\n") for name in modules()}
    long = {name: length for name, length in lengths.items() if length > MODULE_LINES}
    assert max(lengths.values()) <= MODULE_LINES_AT_MOST, long
    assert len(long) <= LONG_MODULES, long


def test_functions_stay_short():
    """None over FUNCTION_LINES, and nine of ten within 35."""
    lengths = {
        f"{name}.{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for name, tree in modules().items()
        for function in functions(tree)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) * 9 // 10] <= 35


def test_every_task_has_a_name_and_an_owner():
    """Tasks are made by a task group and named; the few others are listed with who ends them."""
    nameless, ownerless = [], set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "create_task":
                continue
            if not any(keyword.arg == "name" for keyword in node.keywords):
                nameless.append(f"{name}:{node.lineno}")
            owner = ast.unparse(node.func.value)
            if name.startswith("gateway") and owner not in {"tasks", "self._tasks"}:
                ownerless.add(name)
    assert nameless == []
    assert ownerless == set(LOOP_TASKS)


def test_pure_decisions_have_no_clock_and_no_io():
    """Modules that call themselves pure neither wait nor look at the time nor open anything."""
    forbidden = {"asyncio", "time", "socket", "subprocess", "threading", "selectors"}
    wrong = []
    for name, tree in modules().items():
        pure = re.search(r"^Pure\b(?! but)", ast.get_docstring(tree) or "", re.MULTILINE)
        if not (pure and name.startswith("gateway")):
            continue
        wrong += [f"{name} imports {other}" for other in imports(name) if other.split(".")[0] in forbidden]
        promised = {id(function) for function in promises(tree)}
        wrong += [
            f"{name}: async {function.name}"
            for function in functions(tree)
            if isinstance(function, ast.AsyncFunctionDef) and id(function) not in promised
        ]
    assert wrong == []


def test_production_code_does_not_know_tests():
    """Nothing behaves differently because a test looks."""
    words = re.compile(r"pytest|unittest|MagicMock|called_from_test")
    assert [name for name in modules() if words.search(source(name))] == []


def test_every_test_says_its_promise():
    """Each test has one sentence; it is what a report of a failure starts with."""
    wrong = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in functions(ast.parse(file.read_text(encoding="utf-8"))):
            if function.name.startswith("test_") and not ast.get_docstring(function):
                wrong += [f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"]
    assert wrong == []
