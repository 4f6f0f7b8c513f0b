"""What in a custom node's syntax tree says that it will meet other lanes.

Owns the kinds of findings, their advice and the rules. Pure: a tree goes in, findings come out; no file is touched.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["device", "cache", "numbering", "switch", "loader", "client", "seed"]


@dataclass(frozen=True)
class About:
    """How a kind of finding is called in the report, and what follows from it."""

    title: str
    advice: str
    matters: bool = True
    """Whether somebody may have to do something; the overlay takes care of the others."""


KINDS: Final[dict[Kind, About]] = {
    "device": About("device pins", "these run on the named GPU whichever lane the job is on"),
    "cache": About("shared caches", "a model of ComfyUI kept there is refused on other GPUs; others may end up on two"),
    "numbering": About("own file numbers", 'lanes may save under one name; serialize = ["pack"] helps'),
    "switch": About("process-wide switches", "put back before the next job, but felt by jobs running meanwhile"),
    "loader": About("loaders of their own", "one copy of these weights per lane; nothing must be done", matters=False),
    "client": About("uses of PromptServer's current client", "kept per lane; nothing to do", matters=False),
    "seed": About("global seeds", "kept per lane; nothing to do", matters=False),
}


@dataclass(frozen=True)
class Finding:
    """One place in one file."""

    kind: Kind
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


DEVICE: Final = re.compile(r"(cuda|xpu|hip):\d*$")
SEEDS: Final = frozenset(
    {
        "torch.manual_seed",
        "torch.random.manual_seed",
        "torch.seed",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "numpy.random.seed",
        "random.seed",
    }
)
SWITCH_CALLS: Final = frozenset(
    {
        "torch.use_deterministic_algorithms",
        "torch.set_float32_matmul_precision",
        "torch.set_default_dtype",
        "torch.set_default_tensor_type",
        "torch.set_num_threads",
        "torch.backends.cuda.enable_flash_sdp",
        "torch.backends.cuda.enable_math_sdp",
        "torch.backends.cuda.enable_mem_efficient_sdp",
        "torch.nn.attention.sdpa_kernel",
        "torch.backends.cuda.sdp_kernel",
    }
)
DEVICE_CALLS: Final = frozenset({"torch.set_default_device", "torch.cuda.set_device"})
# Calls whose first number is a device.
INDEX_CALLS: Final = frozenset({"torch.cuda.device", "torch.device"})
INDEX_METHODS: Final = frozenset({"cuda", "to"})
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
# Calls that read weights past ``comfy.utils.load_torch_file``, where copies are shared.
LOADERS: Final = frozenset(
    {
        "safetensors.safe_open",
        "safetensors.torch.load",
        "safetensors.torch.load_file",
        "safetensors.torch.load_model",
        "torch.load",
        "torch.jit.load",
        "gguf.GGUFReader",
        "gguf.gguf_reader.GGUFReader",
    }
)
LOADER_METHODS: Final = frozenset({"from_pretrained", "from_single_file"})
CLIENT_NAMES: Final = frozenset({"client_id", "last_node_id", "last_prompt_id"})
# Words in a name or a call that speak of something big that lives on a device.
BIG: Final = re.compile(
    r"model|pipe(line)?|tensor|latent|encoder|decoder|(^|_)vae|(^|_)clip|unet|(^|_)net(work)?($|_)|detector|predictor"
    r"|sampler|session|processor|tokenizer|lora|weight|embed|upscaler|segment|annotator|from_pretrained|state_dict"
    r"|load_|torch\.|\.to$|\.cuda$|(^|_)sam($|_)",
    re.IGNORECASE,
)
CHANGES: Final = frozenset({"append", "add", "update", "setdefault", "extend", "insert"})
LISTINGS: Final = frozenset({"os.listdir", "os.scandir", "glob.glob", "glob.iglob"})
LISTING_METHODS: Final = frozenset({"iterdir", "glob", "rglob"})
SAVES: Final = frozenset({"save", "imwrite", "imsave", "write_videofile", "save_file", "imwrite_unicode"})


def findings(tree: ast.Module, path: str) -> list[Finding]:
    """Everything the rules see in one file, in order of lines, each place and kind once."""
    nodes = list(ast.walk(tree))
    names = _imports(nodes)
    found: dict[tuple[Kind, int], Finding] = {}
    for rule in (_devices, _environment, _seeds, _switches, _loaders, _clients, _numbering):
        for kind, line, text in rule(nodes, names):
            found.setdefault((kind, line), Finding(kind, path, line, text))
    for kind, line, text in _caches(tree, nodes):
        found.setdefault((kind, line), Finding(kind, path, line, text))
    return sorted(found.values(), key=lambda finding: finding.line)


Hit = tuple[Kind, int, str]
Names = dict[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _imports(nodes: list[ast.AST]) -> Names:
    """What each imported name stands for, as a dotted path."""
    names: Names = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _dotted(node: ast.AST, names: Names) -> str:
    """``np.random.seed`` → ``numpy.random.seed``; empty where it is no plain path of names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def _text(node: ast.AST, limit: int = 70) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _devices(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    ignored = _compared(nodes)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DEVICE.match(node.value) and id(node) not in ignored:
                yield "device", node.lineno, f"device {node.value!r}"
        elif isinstance(node, ast.Call) and _names_device(node, names):
            yield "device", node.lineno, _text(node)


def _compared(nodes: list[ast.AST]) -> set[int]:
    """Constants that are only looked at: comparisons, and strings that stand alone."""
    found: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Compare):
            found |= {id(inner) for inner in ast.walk(node)}
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
    return found


def _names_device(call: ast.Call, names: Names) -> bool:
    called = _dotted(call.func, names)
    if called in DEVICE_CALLS:
        return True
    method = isinstance(call.func, ast.Attribute) and call.func.attr in INDEX_METHODS
    numbered = [
        argument
        for argument in [*call.args, *(word.value for word in call.keywords if word.arg in {"device", "index"})]
        if isinstance(argument, ast.Constant) and type(argument.value) is int
    ]
    # Nobody but torch, and what wraps it, calls a number "device": ``zeros(1, device=0)``, ``pipeline(device=0)``.
    named = any(word.arg == "device" and word.value in numbered for word in call.keywords)
    return named or (bool(numbered) and (method or called in INDEX_CALLS))


def _environment(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Subscript) and _is_visible(target.slice) for target in targets):
                yield "device", node.lineno, _text(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = _dotted(node.func, names)
            writes = called in {"os.putenv", "os.environ.setdefault", "os.environ.update"}
            if writes and any(_is_visible(inner) for inner in ast.walk(node)):
                yield "device", node.lineno, _text(node)


def _is_visible(node: ast.AST) -> bool:
    return (isinstance(node, ast.Constant) and node.value == VISIBLE) or (
        isinstance(node, ast.keyword) and node.arg == VISIBLE
    )


def _seeds(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    for node in nodes:
        if isinstance(node, ast.Call) and _dotted(node.func, names) in SEEDS:
            yield "seed", node.lineno, _text(node)


def _switches(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    for node in nodes:
        if isinstance(node, ast.Call) and _dotted(node.func, names) in SWITCH_CALLS:
            yield "switch", node.lineno, _text(node)
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_dotted(target, names).startswith("torch.backends.") for target in targets):
                yield "switch", node.lineno, _text(node)


def _loaders(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute) and node.func.attr in LOADER_METHODS
        if method or _dotted(node.func, names) in LOADERS:
            yield "loader", node.lineno, _text(node)


def _clients(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    servers = {"PromptServer.instance", "server.PromptServer.instance"}
    holders = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and _dotted(node.value, names) in servers
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in CLIENT_NAMES:
            owner = _dotted(node.value, names)
            if owner in servers or owner in holders:
                yield "client", node.lineno, _text(node)


def _numbering(nodes: list[ast.AST], names: Names) -> Iterator[Hit]:
    for function in nodes:
        if not isinstance(function, Function):
            continue
        inside = list(ast.walk(function))
        calls = [node for node in inside if isinstance(node, ast.Call)]
        saves = any(isinstance(call.func, ast.Attribute) and call.func.attr in SAVES for call in calls)
        saves = saves or any(_dotted(call.func, names) == "folder_paths.get_output_directory" for call in calls)
        listing = next((call for call in calls if _lists(call, names)), None)
        adds = any(isinstance(node, (ast.BinOp, ast.AugAssign)) and _adds_one(node) for node in inside)
        if saves and adds and listing is not None:
            yield "numbering", listing.lineno, f"{function.name} numbers its files by {_text(listing)}"


def _lists(call: ast.Call, names: Names) -> bool:
    if _dotted(call.func, names) in LISTINGS | {"os.path.exists", "os.path.isfile"}:
        return True
    return isinstance(call.func, ast.Attribute) and call.func.attr in LISTING_METHODS | {"exists"}


def _adds_one(node: ast.BinOp | ast.AugAssign) -> bool:
    step = node.right if isinstance(node, ast.BinOp) else node.value
    return isinstance(node.op, ast.Add) and isinstance(step, ast.Constant) and step.value == 1


def _caches(tree: ast.Module, nodes: list[ast.AST]) -> Iterator[Hit]:
    """Module and class variables that functions fill with something that sounds like a model or tensors."""
    shared = _empty_names(tree.body)
    for part in tree.body:
        if isinstance(part, ast.ClassDef):
            shared |= {f"{owner}.{name}" for name in _empty_names(part.body) for owner in (part.name, "cls")}
    for function in nodes:
        if isinstance(function, Function):
            yield from _memoised(function)
            yield from _filled(function, shared)


def _filled(function: Function, shared: set[str]) -> Iterator[Hit]:
    inside = list(ast.walk(function))
    declared = {name for node in inside if isinstance(node, ast.Global) for name in node.names}
    for node in inside:
        if isinstance(node, (ast.Assign, ast.Call)):
            name = _fills(node, shared, declared)
            if name and BIG.search(name + " " + _spoken(node)):
                yield "cache", node.lineno, f"{name}: {_text(node)}"


def _empty_names(body: list[ast.stmt]) -> set[str]:
    """Variables that start as ``None`` or as an empty container."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and _is_empty(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _is_empty(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is None
    if isinstance(node, ast.Dict):
        return not node.keys
    if isinstance(node, ast.List):
        return not node.elts
    return isinstance(node, ast.Call) and not node.args and _dotted(node.func, {}).rpartition(".")[2].lower() in {
        *("dict", "list", "set", "ordereddict", "weakvaluedictionary", "lrucache"),
    }


def _fills(node: ast.Assign | ast.Call, shared: set[str], declared: set[str]) -> str | None:
    """The shared variable that ``node`` puts something into."""
    if isinstance(node, ast.Assign):
        for target in () if _is_empty(node.value) else node.targets:
            if isinstance(target, ast.Subscript) and (name := _dotted(target.value, {})) in shared:
                return name
            name = _dotted(target, {})
            if name in shared and (name in declared or "." in name):
                return name
    elif isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        name = _dotted(node.func.value, {})
        return name if name in shared else None
    return None


def _memoised(function: Function) -> Iterator[Hit]:
    for decorator in function.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = _dotted(call, {}).rpartition(".")[2]
        if name in {"lru_cache", "cache"} and BIG.search(function.name + " " + _spoken(function)):
            yield "cache", function.lineno, f"@{_text(decorator)} {function.name}"


def _spoken(node: ast.AST) -> str:
    """The names of what is called inside."""
    return " ".join(_text(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call))
