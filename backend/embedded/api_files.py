"""Routes that give and take files: ``/view`` and the two uploads. ComfyUI's rules (``server.py``).

File work runs in threads, off the event loop.
"""

import asyncio
import errno
import filecmp
import json
import mimetypes
import shutil
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from backend.embedded.files import BadName, Files, Outside
from backend.embedded.http import refuse

UNSAFE: Final = frozenset(
    {"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css", "image/svg+xml"}
)
"""Types a browser would run; sent as downloads."""


class FileRoutes:
    """``/view``, ``/upload/image``, ``/upload/mask``."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/view", self.view),
            web.post("/upload/image", self.upload_image),
            web.post("/upload/mask", self.upload_mask),
        ]

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        try:
            path = self._files.find(
                query.get("filename", ""), query.get("type", "output"), query.get("subfolder", "")
            )
        except Outside:
            return web.Response(status=403)
        except BadName:
            return web.Response(status=400 if "filename" in query else 404)
        if not is_file(path):
            return web.Response(status=404)
        headers = {"Content-Disposition": f'filename="{_quoted(path.name)}"'}
        channel = query.get("channel", "rgba")
        try:
            if "preview" in query:
                body, kind = await asyncio.to_thread(preview, path, query["preview"], query.get("channel", ""))
            elif channel in {"rgb", "a"}:
                body, kind = await asyncio.to_thread(one_channel, path, channel), "image/png"
            else:
                return web.FileResponse(path, headers={**headers, "Content-Type": content_type(path.name)})
        except (UnidentifiedImageError, OSError) as error:
            return refuse(400, "invalid_image", "The file is no image.", str(error))
        return web.Response(body=body, content_type=kind, headers=headers)

    async def upload_image(self, request: web.Request) -> web.Response:
        post = await request.post()

        def write(path: Path, uploaded: web.FileField) -> None:
            with path.open("wb") as opened:
                shutil.copyfileobj(uploaded.file, opened)

        return await self._upload(post, write)

    async def upload_mask(self, request: web.Request) -> web.Response:
        post = await request.post()
        try:
            ref = json.loads(str(post.get("original_ref", "")))
            original = self._files.find(
                str(ref["filename"]), str(ref.get("type", "output")), str(ref.get("subfolder", ""))
            )
        except Outside:
            return web.Response(status=403)
        except (BadName, ValueError, KeyError, TypeError) as error:
            return refuse(400, "invalid_request", "original_ref does not name a file.", str(error))
        if not is_file(original):
            return refuse(400, "invalid_request", "original_ref does not name a file.", original.name)

        def write(path: Path, uploaded: web.FileField) -> None:
            put_mask(original, uploaded.file, path)

        return await self._upload(post, write)

    async def _upload(self, post: Any, write: Callable[[Path, web.FileField], None]) -> web.Response:
        uploaded = post.get("image")
        if not isinstance(uploaded, web.FileField) or not uploaded.filename:
            return web.Response(status=400)
        kind, subfolder = str(post.get("type") or "input"), str(post.get("subfolder") or "")

        def same(path: Path) -> bool:
            with tempfile.NamedTemporaryFile() as copy:
                shutil.copyfileobj(uploaded.file, copy)
                copy.flush()
                uploaded.file.seek(0)
                return filecmp.cmp(path, copy.name, shallow=False)

        try:
            name = await asyncio.to_thread(
                self._files.upload,
                kind,
                subfolder,
                uploaded.filename,
                lambda path: write(path, uploaded),
                overwrite=post.get("overwrite") in {"true", "1"},
                same=same,
            )
        except (Outside, BadName) as error:
            return refuse(400, "invalid_request", "The file cannot be kept there.", str(error))
        except UnidentifiedImageError as error:
            return refuse(400, "invalid_image", "The upload is no image.", str(error))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return refuse(400, "invalid_request", "The file cannot be kept there.", "the name is too long")
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def is_file(path: Path) -> bool:
    """Whether there is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def put_mask(original: Path, mask: Any, target: Path) -> None:
    """Write ``original`` with the mask's transparency to ``target``, as PNG, with the original's texts."""
    with Image.open(original) as picture, Image.open(mask) as drawn:
        text = PngInfo()
        for name, value in getattr(picture, "text", {}).items():
            text.add_text(name, value)
        whole = picture.convert("RGBA")
        whole.putalpha(drawn.convert("RGBA").getchannel("A"))
        whole.save(target, format="PNG", compress_level=4, pnginfo=text)


def preview(path: Path, wish: str, channel: str) -> tuple[bytes, str]:
    """The image as ``webp`` or ``jpeg`` (``"jpeg;80"``: quality 80) and its content type."""
    kind, _, quality = wish.partition(";")
    if kind not in {"webp", "jpeg"} or "a" in channel:
        kind = "webp"
    with Image.open(path) as opened:
        image = opened.convert("RGB") if kind == "jpeg" or channel == "rgb" else opened
        found = BytesIO()
        image.save(found, format=kind, quality=int(quality) if quality.isdigit() else 90)
    return found.getvalue(), f"image/{kind}"


def one_channel(path: Path, channel: str) -> bytes:
    """As PNG: the colours without transparency (``rgb``), or black with the transparency alone (``a``)."""
    with Image.open(path) as opened:
        if channel == "rgb":
            image = opened.convert("RGB")
        else:
            alpha = opened.getchannel("A") if opened.mode == "RGBA" else Image.new("L", opened.size, 255)
            image = Image.new("RGBA", opened.size)
            image.putalpha(alpha)
        found = BytesIO()
        image.save(found, format="PNG")
    return found.getvalue()


def content_type(name: str) -> str:
    """By ending; what a browser would run becomes a plain download."""
    found = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return "application/octet-stream" if found in UNSAFE else found


def _quoted(name: str) -> str:
    # A header line must not end early, whatever a file is called.
    return "".join(" " if ord(char) < 32 else char for char in name).replace("\\", "\\\\").replace('"', '\\"')
