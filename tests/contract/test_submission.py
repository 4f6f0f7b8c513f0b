"""``POST /prompt``: what is taken, and ComfyUI's answers to what is not."""

import uuid
from typing import Any

import pytest

from tests.contract.client import Client, picture

ERROR = {"type", "message", "details", "extra_info"}


async def refused(client: Client, prompt: Any, **more: Any) -> dict[str, Any]:
    status, answer = await client.post("/prompt", {"prompt": prompt, **more}, 1)
    assert status == 400
    assert set(answer["error"]) == ERROR
    found: dict[str, Any] = answer
    return found


async def test_no_prompt(client: Client):
    """A body without a prompt is told so."""
    status, answer = await client.post("/prompt", {"client_id": "x"})
    assert (status, answer["error"]["type"]) == (400, "no_prompt")


UNKNOWN_CLASS = ("invalid_prompt", "missing_node_type")
"""What ComfyUI says of a class that it does not have; version 0.33 the second."""


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ({}, "prompt_no_outputs"),
        ({"1": {"class_type": "EmptyImage", "inputs": {}}}, "prompt_no_outputs"),
        ({"1": {"inputs": {}}}, UNKNOWN_CLASS),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, UNKNOWN_CLASS),
    ],
)
async def test_a_prompt_that_cannot_run(client: Client, prompt: Any, kind: str | tuple[str, ...]):
    """Whole-prompt errors have ComfyUI's type names and no node errors."""
    answer = await refused(client, prompt)
    assert answer["error"]["type"] in ((kind,) if isinstance(kind, str) else kind)
    assert not answer["node_errors"]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("width", None, "required_input_missing"),
        ("width", 0, "value_smaller_than_min"),
        ("width", 10**9, "value_bigger_than_max"),
        ("width", "wide", "invalid_input_type"),
        ("width", ["1"], "bad_linked_input"),
        ("width", ["1", 0], "return_type_mismatch"),
    ],
)
async def test_an_input_that_does_not_fit(client: Client, name: str, value: Any, kind: str):
    """Node errors name the node, its class, the outputs that depend on it, and the input."""
    prompt = picture()
    prompt["1"]["inputs"][name] = value
    if value is None:
        del prompt["1"]["inputs"][name]
    if value == ["1", 0]:
        prompt["9"] = {"class_type": "EmptyImage", "inputs": dict(picture()["1"]["inputs"])}
        prompt["1"]["inputs"][name] = ["9", 0]
    answer = await refused(client, prompt)
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"
    found = answer["node_errors"]["1"]
    assert found["class_type"] == "EmptyImage"
    assert found["dependent_outputs"] == ["2"]
    assert [each["type"] for each in found["errors"]] == [kind]
    assert found["errors"][0]["extra_info"]["input_name"] == name
    assert set(found["errors"][0]) == ERROR


async def test_a_choice_that_is_not_there(client: Client):
    """A value outside a list of choices is told with the choices."""
    prompt = picture()
    inputs = {"image": ["1", 0], "upscale_method": "magic", "width": 8, "height": 8, "crop": "disabled"}
    prompt["3"] = {"class_type": "ImageScale", "inputs": inputs}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    answer = await refused(client, prompt)
    (error,) = answer["node_errors"]["3"]["errors"]
    assert error["type"] == "value_not_in_list"
    assert "'magic' not in ['nearest-exact'" in error["details"]


async def test_a_good_output_runs_beside_a_bad_one(client: Client):
    """One output that cannot run does not stop the others; the answer names what was left out."""
    prompt = picture()
    prompt["5"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    status, answer = await client.post("/prompt", {"prompt": prompt}, 1)
    assert status == 200
    assert answer["node_errors"]["5"]["errors"][0]["type"] == "required_input_missing"
    entry = await client.done(answer["prompt_id"])
    assert set(entry["outputs"]) == {"2"}


async def test_values_are_converted(client: Client):
    """A number sent as text is taken where it reads as one."""
    prompt = picture(size=16)
    prompt["1"]["inputs"]["width"] = "24"
    (image,) = await client.pictures(await client.submit(prompt))
    assert (await client.view(image))[16:20] == (24).to_bytes(4, "big")


async def test_partial_targets(client: Client):
    """Only the outputs named in partial_execution_targets are run."""
    prompt = picture()
    prompt["5"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "partial"}}
    entry = await client.done(await client.submit(prompt, 1, partial_execution_targets=["5"]))
    assert set(entry["outputs"]) == {"5"}


async def test_the_clients_own_id_is_kept(client: Client):
    """A prompt_id that the client chose names the job everywhere; sent twice, both run and the history has one."""
    chosen = str(uuid.uuid4())  # newer versions of ComfyUI take nothing else
    for _ in range(2):
        assert await client.submit(picture(), 2, prompt_id=chosen) == chosen
    await client.drained()
    assert (await client.done(chosen))["prompt"][1] == chosen


async def test_no_content_type_is_needed(client: Client):
    """comfy-api-simplified and curl -d send JSON as a form; it is taken all the same."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", **client.headers(2)}
    async with client.session.post(f"{client.at(2)}/prompt", data=b'{"prompt": {}}', headers=headers) as answer:
        assert (await answer.json())["error"]["type"] == "prompt_no_outputs"


async def test_object_info_describes_the_nodes(client: Client):
    """What clients build forms and checks from: inputs with type and limits, outputs, names."""
    everything = await client.get("/object_info")
    names = {
        "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "VAEEncode",
        "LoadImage", "SaveImage", "PreviewImage", "ImageScale", "ImageInvert", "ImageBlend", "ImageBlur", "EmptyImage",
    }  # fmt: skip
    assert names <= set(everything)
    sampler = (await client.get("/object_info/KSampler"))["KSampler"]
    assert sampler == everything["KSampler"]
    kind, limits = sampler["input"]["required"]["steps"]
    assert (kind, limits["default"], limits["min"], limits["max"]) == ("INT", 20, 1, 10000)
    assert {"euler", "dpmpp_2m"} <= set(sampler["input"]["required"]["sampler_name"][0])
    assert sampler["input_order"]["required"][:4] == ["model", "seed", "steps", "cfg"]
    assert (sampler["output"], sampler["output_node"]) == (["LATENT"], False)
    save = everything["SaveImage"]
    assert save["output_node"] is True
    assert save["input"]["hidden"] == {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    assert await client.get("/object_info/NoSuchNode") == {}


async def test_models_are_listed_by_folder(client: Client):
    """Folder names, then names in a folder; 404 for a folder that is none."""
    assert {"checkpoints", "loras", "vae"} <= set(await client.get("/models"))
    assert isinstance(await client.get("/models/checkpoints"), list)
    async with client.session.get(f"{client.url}/models/nonsense") as answer:
        assert answer.status == 404
