"""The compatibility scan: what it finds, what it leaves alone, and that nothing stops it."""

import logging
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from backend.overlay.scan import Report, in_background, loaded_from, look, scan, tell
from backend.overlay.scan_rules import Finding

FOUND = [
    ("device", 'x.to("cuda:0")'),
    ("device", 'device = "cuda:1"'),
    ("device", "def f(device='cuda:0'): pass"),
    ("device", "x.cuda(0)"),
    ("device", "x.to(1)"),
    ("device", "x.to(device=1)"),
    ("device", "import torch\ntorch.set_default_device('cuda')"),
    ("device", "from torch import set_default_device as s\ns(d)"),
    ("device", "import torch\ntorch.cuda.set_device(0)"),
    ("device", "import torch\nwith torch.cuda.device(0): pass"),
    ("device", "import torch\nd = torch.device('cuda', 0)"),
    ("device", 'd = f"cuda:{index}"'),
    ("device", "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'"),
    ("device", "import os\nos.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')"),
    ("device", "import os\nos.environ.update(CUDA_VISIBLE_DEVICES='0')"),
    ("device", "import torch\ntorch.zeros(1, device=0)"),
    ("device", "from transformers import pipeline\npipeline('x', device=1)"),
    ("loader", "import torch\nsd = torch.load(path)"),
    ("loader", "from safetensors import safe_open\nwith safe_open(path, framework='pt') as f: pass"),
    ("loader", "import safetensors.torch\nsd = safetensors.torch.load_file(path)"),
    ("loader", "from safetensors.torch import load_file as read\nsd = read(path)"),
    ("loader", "import gguf\nreader = gguf.GGUFReader(path)"),
    ("loader", "from gguf import GGUFReader\nreader = GGUFReader(path)"),
    ("loader", "from diffusers import Pipe\np = Pipe.from_pretrained(name)"),
    ("seed", "import torch\ntorch.manual_seed(1)"),
    ("seed", "from torch import manual_seed\nmanual_seed(1)"),
    ("seed", "import torch as t\nt.cuda.manual_seed_all(1)"),
    ("seed", "import numpy as np\nnp.random.seed(1)"),
    ("seed", "import random\nrandom.seed(1)"),
    ("switch", "import torch\ntorch.backends.cudnn.benchmark = True"),
    ("switch", "import torch\ntorch.set_float32_matmul_precision('high')"),
    ("switch", "from torch.nn.attention import sdpa_kernel\nwith sdpa_kernel(x): pass"),
    ("client", "from server import PromptServer\nPromptServer.instance.client_id"),
    ("client", "import server\nserver.PromptServer.instance.last_node_id"),
    ("client", "from server import PromptServer\ns = PromptServer.instance\nf(s.client_id)"),
    ("cache", "_model = None\ndef f():\n global _model\n _model = load_model('x')"),
    ("cache", "CACHE = {}\ndef f(name):\n CACHE[name] = load_model(name)"),
    ("cache", "CACHE: dict = {}\ndef f(name):\n CACHE.setdefault(name, make_pipeline())"),
    ("cache", "class Node:\n model = None\n def f(self):\n  Node.model = make()"),
    ("cache", "class Node:\n cache = {}\n @classmethod\n def f(cls):\n  cls.cache['x'] = Model().to(d)"),
    ("cache", "import functools\n@functools.lru_cache(maxsize=1)\ndef load_model(name): pass"),
    ("numbering", "import os\ndef f(d, img):\n n = len(os.listdir(d)) + 1\n img.save(f'{d}/{n}.png')"),
    ("numbering", "import os\ndef f(p, img):\n i = 0\n while os.path.exists(p): i += 1\n img.save(p)"),
    ("numbering", "from pathlib import Path\ndef f(d, img):\n n = max(x for x in Path(d).glob('*')) + 1\n img.save(n)"),
]

LEFT_ALONE = [
    'x.to("cuda")',
    "x.cuda()",
    'if device == "cuda:0": pass',
    '"""Runs on cuda:0."""',
    'text = "use cuda:0 here"',
    "x.to(torch.float16)",
    "import torch\ntorch.zeros(0, device=device)",
    "torch.zeros(1, device=None)",
    "import comfy.utils\nsd = comfy.utils.load_torch_file(path)",
    "import json\nx = json.load(f)",
    "items.to(name)",
    "import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])",
    "import torch\ng = torch.Generator().manual_seed(1)",
    "import torch\nif torch.backends.cudnn.benchmark: pass",
    "self.client_id = 3",
    "request.client_id",
    "NAMES = {}\ndef f(x):\n NAMES[x] = 3",
    "CACHE = {}\nCACHE['model'] = load_model('x')",
    "def f():\n model = None\n model = load_model()",
    "NODE_CLASS_MAPPINGS = {}\nNODE_CLASS_MAPPINGS.update({'Model': Model})",
    "import functools\n@functools.lru_cache\ndef double(x): return 2 * x",
    "import os\ndef f(d): return len(os.listdir(d)) + 1",
    "def f(img, counter):\n counter += 1\n img.save(f'{counter:05}.png')",
]


def kinds(source: str) -> list[str]:
    return [finding.kind for finding in look(source.encode(), "pack/file.py")]


@pytest.mark.parametrize(("kind", "source"), FOUND)
def test_what_meets_other_lanes_is_found(kind: str, source: str):
    """Each way of pinning, seeding, sharing and numbering is one finding of its kind."""
    assert kinds(source) == [kind]


@pytest.mark.parametrize("source", LEFT_ALONE)
def test_what_follows_the_lane_is_not_reported(source: str):
    """Code that only looks the same, in comparisons, words or local variables, is no finding."""
    assert kinds(source) == []


def write(folder: Path, name: str, source: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source), encoding="utf-8")


def test_the_report_names_file_and_line(tmp_path: Path):
    """Findings come with the pack, the file and the line, the heavier kinds first."""
    write(tmp_path, "pack/nodes/a.py", "import torch\ntorch.manual_seed(3)\n\n\nx.to('cuda:0')\n")
    write(tmp_path, "single.py", "x.cuda(1)\n")
    report = scan([tmp_path])
    assert [str(finding) for finding in report.findings] == [
        "pack/nodes/a.py:5: device 'cuda:0'",
        "single.py:1: x.cuda(1)",
        "pack/nodes/a.py:2: torch.manual_seed(3)",
    ]
    lines = report.lines()
    assert "2 packs, 2 files" in lines[0]
    assert "3 found (2 device pins, 1 global seeds)" in lines[0]
    assert lines[1] == "  pack/nodes/a.py:5: device 'cuda:0'"


def test_twenty_are_shown_and_the_total(tmp_path: Path):
    """A long list is cut at twenty and says how many there are."""
    write(tmp_path, "pack/a.py", "x.cuda(0)\n" * 33)
    lines = scan([tmp_path]).lines()
    assert "33 found (33 device pins)" in lines[0]
    assert sum("x.cuda(0)" in line for line in lines) == 20
    assert "  … and 13 more" in lines


def test_nothing_found_is_said(tmp_path: Path):
    """An empty folder, one without findings and one that is not there all say so."""
    write(tmp_path, "a/pack.py", "x = 1\n")
    for folder in (tmp_path / "a", tmp_path / "b"):
        lines = scan([folder]).lines()
        assert len(lines) == 1
        assert lines[0].endswith(": none found")


def test_only_what_comfyui_loads_is_read(tmp_path: Path):
    """Disabled packs, caches, hidden folders and other files are left out; an allow list narrows it further."""
    pin = "x.cuda(0)\n"
    for name in ("on/a.py", "off.disabled/a.py", "off.py.disabled", "__pycache__/a.py", ".git/a.py", "note.txt"):
        write(tmp_path, name, pin)
    for name in ("on/venv/a.py", "on/.git/a.py", "on/data.json", "other/a.py", "single.py"):
        write(tmp_path, name, pin)
    assert {finding.path for finding in scan([tmp_path]).findings} == {"on/a.py", "other/a.py", "single.py"}
    assert {finding.path for finding in scan([tmp_path], {"on", "single"}).findings} == {"on/a.py", "single.py"}


def test_files_that_are_no_python_never_stop_it(tmp_path: Path):
    """Wrong syntax, wrong encodings, null bytes, deep nesting, huge files and dangling links are named and passed."""
    write(tmp_path, "pack/good.py", "x.cuda(0)\n")
    write(tmp_path, "pack/old.py", "print 'hello'\n")
    write(tmp_path, "pack/deep.py", "(" * 5000 + ")" * 5000)
    write(tmp_path, "pack/huge.py", "x = 1\n" * 300_000)
    (tmp_path / "pack/latin.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "pack/null.py").write_bytes(b"x\0y")
    (tmp_path / "pack/gone.py").symlink_to(tmp_path / "nowhere")
    report = scan([tmp_path])
    assert [finding.path for finding in report.findings] == ["pack/good.py"]
    named = {reason.partition(":")[0] for reason in report.unread}
    assert named == {f"pack/{name}.py" for name in ("old", "deep", "huge", "latin", "null", "gone")}
    assert sum("not read" in line for line in report.lines()) == 6


def test_it_takes_no_longer_than_it_may(tmp_path: Path):
    """When the time is up the rest is counted and said, not read."""
    for index in range(5):
        write(tmp_path, f"pack/{index}.py", "x.cuda(0)\n")
    ticks = iter(range(100))
    report = scan([tmp_path], clock=lambda: float(next(ticks)), limit=2.5)
    assert (report.files, report.left_out, len(report.findings)) == (2, 3, 2)
    assert any("3 files were not looked at" in line for line in report.lines())


def test_it_reads_where_comfyui_loads_from(comfy: dict[str, types.ModuleType], tmp_path: Path):
    """Every configured folder counts; with custom nodes switched off only those that are allowed all the same."""
    args: Any = comfy["comfy.cli_args"].args  # type: ignore[attr-defined]
    comfy["folder_paths"].get_folder_paths = lambda kind: [str(tmp_path / kind), "/more"]  # type: ignore[attr-defined]
    args.disable_all_custom_nodes = False
    args.whitelist_custom_nodes = ["pack"]
    assert loaded_from() == ([tmp_path / "custom_nodes", Path("/more")], None)
    args.disable_all_custom_nodes = True
    assert loaded_from()[1] == {"pack"}


def test_it_tells_the_log_as_loud_as_it_must(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Findings somebody may have to act on are warnings; what the overlay takes care of, or none, is information."""
    with caplog.at_level(logging.INFO, "backend.overlay.scan"):
        tell(Report(1, 1, 0.1, ()))
        tell(Report(1, 1, 0.1, (Finding("seed", "p/a.py", 3, "random.seed(1)"),)))
        assert {record.levelname for record in caplog.records} == {"INFO"}
        caplog.clear()
        tell(Report(1, 1, 0.1, (Finding("device", "p/a.py", 3, "x.cuda(0)"),)))
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        caplog.clear()
        in_background([tmp_path]).join(30)
        assert "none found" in caplog.text
