"""What nodes offer is made once for many, and every change shows at once: models, uploads, with a refresh or not."""

import gzip
import json
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.conftest import Site

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

REFRESH = {"Cache-Control": "no-cache", "Pragma": "no-cache"}
"""What the frontend sends with each fetch of the nodes (``cache: "no-store"``)."""


def ask(host: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body of GET /api/object_info."""
    asked = urllib.request.Request(f"http://{host}/api/object_info", headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def offered(host: str, node: str, name: str, **headers: str) -> list[Any]:
    """The files that a node offers now."""
    found = json.loads(ask(host, **headers)[2])[node]["input"]["required"][name]
    return list(found[0]) if isinstance(found[0], list) else list(found[1]["options"])


def test_the_gateways_answer_is_the_backends(ports: Site) -> None:
    """Byte for byte, also out of its compressed form; and it is not made again for who has it."""
    assert ports.backend
    ask(ports.backend.host)  # some nodes fill in their words when they are first asked
    _, told, direct = ask(ports.backend.host)
    status, fields, packed = ask(ports.lanes[1].host, **{"Accept-Encoding": "gzip"})
    assert status == 200
    assert gzip.decompress(packed) == direct == ask(ports.lanes[2].host)[2]
    assert fields["etag"].removeprefix("W/") == told["etag"]
    assert ask(ports.lanes[0].host, **{"If-None-Match": fields["etag"]})[0] == 304
    assert ask(ports.backend.host, **{"If-None-Match": told["etag"]})[0] == 304


@pytest.mark.parametrize("headers", [{}, REFRESH])
def test_a_new_model_shows_at_once(ports: Site, tiny_models: Path, headers: dict[str, str]) -> None:
    """A file put into a models folder is offered by the very next answer, and gone from it when it is gone."""
    host, name = ports.lanes[0].host, f"listing-{uuid.uuid4().hex}.safetensors"
    offered(host, "CheckpointLoaderSimple", "ckpt_name", **headers)
    file = tiny_models / "checkpoints" / name
    file.write_bytes(b"")
    try:
        assert name in offered(host, "CheckpointLoaderSimple", "ckpt_name", **headers)
    finally:
        file.unlink()
    assert name not in offered(host, "CheckpointLoaderSimple", "ckpt_name", **headers)


@pytest.mark.parametrize("headers", [{}, REFRESH])
def test_an_upload_shows_at_once(ports: Site, headers: dict[str, str]) -> None:
    """A picture uploaded through one port is offered on all of them."""
    name, line = f"listing-{uuid.uuid4().hex}.png", uuid.uuid4().hex
    for lane in ports.lanes:
        offered(lane.host, "LoadImage", "image", **headers)
    body = (f'--{line}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            f"Content-Type: image/png\r\n\r\nx\r\n--{line}--\r\n").encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={line}"}
    asked = urllib.request.Request(f"http://{ports.lanes[0].host}/api/upload/image", body, kind)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200
    for lane in ports.lanes:
        assert name in offered(lane.host, "LoadImage", "image", **headers)


def test_many_at_once_all_get_it(ports: Site) -> None:
    """Forty clients on four ports."""
    hosts = [lane.host for lane in ports.lanes] * 10
    with ThreadPoolExecutor(len(hosts)) as threads:
        answers = list(threads.map(lambda host: ask(host, **REFRESH)[2], hosts))
    assert set(answers) == {ask(hosts[0])[2]}
