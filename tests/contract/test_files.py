"""Uploads, views and names: nothing lost, nothing overwritten, nothing reached outside."""

import asyncio
import io
import json
import uuid
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.contract.client import Client, picture, sampled, unlike
from tests.contract.conftest import GPUS, Body


def png(color: tuple[int, ...] = (200, 30, 60), size: int = 8) -> bytes:
    found = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (size, size), color).save(found, "PNG")
    return found.getvalue()


async def upload(client: Client, data: bytes, name: str, route: str = "image", **fields: str) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("image", data, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    async with client.session.post(f"{client.url}/upload/{route}", data=form) as answer:
        return answer.status, await answer.json() if answer.status == 200 else None


async def load(client: Client, name: str) -> list[dict[str, str]]:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}},
    }
    return await client.pictures(await client.submit(prompt, 1))


async def test_an_upload_is_used(client: Client):
    """An uploaded picture is loaded by its name, and its colours come out."""
    name = f"{uuid.uuid4().hex}.png"
    status, answer = await upload(client, png((10, 200, 30)), name)
    assert (status, answer) == (200, {"name": name, "subfolder": "", "type": "input"})
    (image,) = await load(client, name)
    assert Image.open(io.BytesIO(await client.view(image))).getpixel((3, 3)) == (10, 200, 30)


async def test_names_of_uploads(client: Client):
    """The same content keeps its name, other content gets a number, overwrite replaces."""
    name = uuid.uuid4().hex
    assert (await upload(client, png((1, 2, 3)), f"{name}.png"))[1]["name"] == f"{name}.png"
    assert (await upload(client, png((1, 2, 3)), f"{name}.png"))[1]["name"] == f"{name}.png"
    assert (await upload(client, png((4, 5, 6)), f"{name}.png"))[1]["name"] == f"{name} (1).png"
    _, answer = await upload(client, png((7, 8, 9)), f"{name}.png", overwrite="true")
    assert answer["name"] == f"{name}.png"
    seen = await client.view({"filename": f"{name}.png", "type": "input"})
    assert Image.open(io.BytesIO(seen)).getpixel((0, 0)) == (7, 8, 9)


async def test_uploads_into_subfolders(client: Client):
    """A subfolder is made, told back, and used by LoadImage."""
    sub, name = f"in/{uuid.uuid4().hex}", "a.png"
    _, answer = await upload(client, png(), name, subfolder=sub)
    assert answer == {"name": name, "subfolder": sub, "type": "input"}
    assert len(await load(client, f"{sub}/{name}")) == 1


@pytest.mark.parametrize("fields", [{"subfolder": "../.."}, {"subfolder": "/etc"}])
async def test_uploads_stay_inside(client: Client, fields: dict[str, str]):
    """A subfolder that leads out is refused."""
    status, _ = await upload(client, png(), "out.png", **fields)
    assert status == 400


async def test_an_upload_without_a_file(client: Client):
    """A form without a picture is refused."""
    async with client.session.post(f"{client.url}/upload/image", data={"type": "input"}) as answer:
        assert answer.status == 400


async def test_a_mask_becomes_transparency(client: Client):
    """/upload/mask keeps the original's colours and takes the mask's alpha."""
    name = f"{uuid.uuid4().hex}.png"
    await upload(client, png((10, 20, 30)), name)
    ref = json.dumps({"filename": name, "type": "input", "subfolder": ""})
    status, answer = await upload(client, png((0, 0, 0, 77)), f"mask-{name}", "mask", original_ref=ref, type="input")
    assert status == 200
    seen = await client.view({"filename": answer["name"], "type": "input"})
    assert Image.open(io.BytesIO(seen)).getpixel((0, 0)) == (10, 20, 30, 77)
    alpha = await client.view({"filename": answer["name"], "type": "input"}, channel="a")
    assert Image.open(io.BytesIO(alpha)).getchannel("A").getpixel((0, 0)) == 77
    rgb = await client.view({"filename": answer["name"], "type": "input"}, channel="rgb")
    assert Image.open(io.BytesIO(rgb)).mode == "RGB"


async def test_view_serves_ranges_and_previews(client: Client):
    """A part of a file by Range, a smaller kind of it by preview."""
    (image,) = await client.pictures(await client.submit(picture(size=64)))
    whole = await client.view(image)
    assert whole.startswith(b"\x89PNG")
    async with client.session.get(f"{client.url}/view", params=image, headers={"Range": "bytes=4-9"}) as answer:
        assert answer.status == 206
        assert await answer.read() == whole[4:10]
        assert answer.headers["Content-Range"] == f"bytes 4-9/{len(whole)}"
    for wish, kind in (("webp;50", "WEBP"), ("jpeg", "JPEG"), ("other", "WEBP")):
        assert Image.open(io.BytesIO(await client.view(image, preview=wish))).format == kind


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"filename": "none.png"}, 404),
        ({"filename": "../secret"}, 400),
        ({"filename": "/etc/passwd"}, 400),
        ({"filename": "a.png", "type": "nowhere"}, 400),
        ({"filename": "passwd", "subfolder": "../../../etc"}, 403),
        ({"filename": "passwd", "subfolder": "/etc"}, 403),
    ],
)
async def test_view_stays_inside(client: Client, query: dict[str, str], status: int):
    """No file outside the three folders is ever served."""
    async with client.session.get(f"{client.url}/view", params=query) as answer:
        assert answer.status == status


async def test_saved_pictures_carry_their_workflow(client: Client):
    """A PNG holds the prompt and the workflow as ComfyUI writes them, so that it can be dropped into the frontend."""
    prompt, workflow = picture(), {"nodes": [1, 2]}
    extra = {"extra_pnginfo": {"workflow": workflow}}
    (image,) = await client.pictures(await client.submit(prompt, 1, extra_data=extra))
    text = Image.open(io.BytesIO(await client.view(image))).text  # type: ignore[attr-defined]
    assert json.loads(text["prompt"]) == prompt
    assert json.loads(text["workflow"]) == workflow


async def test_lanes_never_share_a_name(client: Client, body: Body):
    """Four lanes save 80 pictures under one prefix: 80 numbered files, each its own."""
    prefix = f"shared/{uuid.uuid4().hex}"
    ids = [await client.submit(picture(prefix, batch=4), gpu) for gpu in list(range(GPUS)) * 5]
    images = [image for each in ids for image in await client.pictures(each)]
    assert len(images) == len({(image["subfolder"], image["filename"]) for image in images}) == 80
    name = prefix.split("/")[1]
    there = sorted(path.name for path in (body.folder / "output" / "shared").glob(f"{name}*"))
    assert there == sorted(image["filename"] for image in images)


async def test_a_preview_lands_in_temp(client: Client):
    """PreviewImage shows a picture that is not kept."""
    prompt = picture()
    prompt["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    (image,) = await client.pictures(await client.submit(prompt, 2))
    assert image["type"] == "temp"
    assert (await client.view(image)).startswith(b"\x89PNG")


async def test_the_same_seed_gives_the_same_bytes(client: Client, body: Body):
    """One seed, every lane, alone and all at once with others: the same picture; another seed, another."""
    if body.checkpoint is None:
        pytest.skip("this body has no checkpoint here; `make test-comfyui` compares its pictures")
    checkpoint, seed = body.checkpoint, 1000 + unlike()

    async def run(gpu: int, seed: int) -> bytes:
        prompt = sampled(checkpoint, seed, f"seed/{uuid.uuid4().hex}")
        (image,) = await client.pictures(await client.submit(prompt, gpu))
        return Image.open(io.BytesIO(await client.view(image))).tobytes()

    alone = await run(0, seed)
    together = await asyncio.gather(*(run(gpu, each) for gpu in range(GPUS) for each in (seed, seed + 1 + gpu)))
    same, others = together[::2], together[1::2]
    assert set(same) == {alone}
    assert len({*others, alone}) == GPUS + 1
