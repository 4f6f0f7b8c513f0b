"""ComfyUI's page as a backend serves it: files with validators and not compressed, and a dear ``/object_info``.

``python -m bench.frontend PORT FOLDER RECORD``. RECORD is tests/data/pageload_cold.json. FOLDER is an unpacked frontend
(comfyui_frontend_package/static); where it lacks a file, or is empty, one of about the same size is made up, of words
that compress as scripts do.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

SIZES: Final = {
    "/assets/index-BKeTeXLp.js": 10_958_601,
    "/assets/index-Dvhu5Mc8.js": 2_835_923,
    "/assets/GraphView-CIE4Y1aC.js": 2_353_053,
    "/materialdesignicons.min.css": 346_560,
    "/assets/index-BUKnlt6s.css": 217_197,
    "/": 64_658,
}
"""Of frontend 1.27.10, the one that was recorded; the others are near ``OTHERS``."""
OTHERS: Final = 7_000
NODES: Final = 350
"""Nodes in the made up ``/object_info``, as many as ComfyUI 0.3.64 has: about 300 KB."""


INSTALLED: Final = time.time() - 30 * 86_400
"""When the files were last changed, as in an installation that has been used for a month."""


def words(size: int, seed: int) -> bytes:
    """Text that compresses to about a quarter."""
    pick = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz$_(){}=>;,."
    vocabulary = ["".join(pick.choices(letters, k=pick.randint(2, 9))) for _ in range(900)]
    return " ".join(pick.choices(vocabulary, k=size // 5)).encode()[:size]


def lay_out(folder: Path, source: Path | None, record: Path) -> list[str]:
    """Write the page's files; the recorded targets in their order."""
    targets = [target for _, method, target in json.loads(record.read_text(encoding="utf-8")) if method == "GET"]
    for number, target in enumerate(targets):
        path = urlsplit(target).path
        if path.startswith("/api/"):
            continue
        name = "index.html" if path == "/" else path.lstrip("/")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        real = source / name if source is not None else None
        file.write_bytes(real.read_bytes() if real and real.is_file() else words(SIZES.get(path, OTHERS), number))
        os.utime(file, (INSTALLED, INSTALLED))
    return targets


def node(number: int) -> dict[str, Any]:
    """What ComfyUI says of one node, about."""
    files = [f"folder/model_{number}_{index}.safetensors" for index in range(12)]
    inputs = {"model": ("MODEL",), "name": (files,), "steps": ("INT", {"default": 20, "min": 1, "max": 10000})}
    return {"input": {"required": inputs}, "input_order": {"required": list(inputs)}, "output": ["IMAGE"],
            "name": f"Node{number}", "description": "Does something to an image. " * 3, "category": "bench/image"}


async def object_info(request: web.Request) -> web.Response:
    """Made anew for each who asks, as ComfyUI does."""
    return web.json_response({f"Node{number}": node(number) for number in range(NODES)})


async def other(request: web.Request) -> web.Response:
    """Small answers of the API."""
    if request.path == "/prompt":
        return web.json_response({"exec_info": {"queue_remaining": 0}})
    return web.json_response({})


@web.middleware
async def controlled(request: web.Request, handler: Any) -> web.StreamResponse:
    """ComfyUI 0.3.64 marks scripts, styles and the page itself."""
    answer: web.StreamResponse = await handler(request)
    if request.path.endswith((".js", ".css", "index.json", "/")):
        answer.headers.setdefault("Cache-Control", "no-cache")
    return answer


def main() -> None:
    """Serve until ended."""
    folder = Path(sys.argv[2])
    app = web.Application(middlewares=[controlled])
    app.router.add_get("/", lambda request: web.FileResponse(folder / "index.html"))
    app.router.add_get("/api/object_info", object_info)
    app.router.add_get("/api/{rest:.*}", other)
    for path in ("/prompt", "/system_stats"):
        app.router.add_get(path, other)
    app.router.add_static("/", folder)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
