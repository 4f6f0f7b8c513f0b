"""Clients that we did not write, on all four ports at once: every picture and every event reaches its own client."""

import io
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import websocket
from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from PIL import Image

from tests.doubles.product import Product
from tests.doubles.prompts import Prompt, painting
from tests.doubles.wait import wait_until

COLORS = [0x102030, 0x405060, 0x708090, 0xA0B0C0]


@pytest.fixture(params=["single", "per_gpu"])
def product(request: pytest.FixtureRequest) -> Product:
    """One backend process with four lanes, and one for each GPU: clients see no difference."""
    found: Product = request.getfixturevalue(request.param)
    return found



def coloured(color: int, seconds: float) -> Prompt:
    """A picture of one colour that takes a while, with the titles by which such clients name nodes."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 24, "height": 24, "batch_size": 1, "color": color},
            "_meta": {"title": "Empty"},
        },
        "2": {
            "class_type": "TestSleep",
            "inputs": {"value": ["1", 0], "seconds": seconds},
            "_meta": {"title": "Sleep"},
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "client", "images": ["2", 0]},
            "_meta": {"title": "Save"},
        },
    }


def color_of(picture: bytes) -> int:
    """The colour of a picture that has only one."""
    with Image.open(io.BytesIO(picture)) as image:
        (found,) = image.convert("RGB").getcolors() or []
    red, green, blue = found[1]
    return (red << 16) + (green << 8) + blue


def all_at_once(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)`` … at the same time; the first failure is raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 (raised below, in the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.filterwarnings("default::ResourceWarning")  # the client leaves its requests session to the collector
def test_comfy_api_simplified_on_four_ports_at_once(product: Product):
    """Three rounds on each port, all ports together: every client gets the picture that it asked for."""

    def client(gpu: int) -> None:
        api = ComfyApiWrapper(f"http://127.0.0.1:{product.ports[1 + gpu]}")
        for turn in range(3):
            color = COLORS[gpu] + turn
            pictures = api.queue_and_wait_images(ComfyWorkflowWrapper(coloured(color, 0.2)), "Save")
            assert [color_of(picture) for picture in pictures.values()] == [color], (gpu, turn)

    all_at_once(4, client)


class PlainClient:
    """The loop of ComfyUI's own script_examples/websockets_api_example.py: connect, submit, listen, fetch."""

    def __init__(self, product: Product, port: int) -> None:
        self.product, self.port = product, port
        self.id = str(uuid.uuid4())
        self.events: list[dict[str, Any]] = []
        self.previews: list[bytes] = []
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{port}/ws?clientId={self.id}", timeout=60)

    def run(self, prompt: Prompt) -> str:
        """Submit and listen until ComfyUI says that the job is over; gives its id."""
        answer = self.product.post(self.port, "/prompt", {"prompt": prompt, "client_id": self.id})
        job: str = answer.json()["prompt_id"]
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                self.previews.append(message)
                continue
            event = json.loads(message)
            self.events.append(event)
            data = event["data"]
            if event["type"] == "executing" and data["node"] is None and data["prompt_id"] == job:
                return job

    def pictures(self, job: str) -> list[bytes]:
        """Every picture of the job, from the port that ran it."""
        outputs = self.product.ask(self.port, f"/history/{job}").json()[job]["outputs"]
        images = [image for output in outputs.values() for image in output.get("images", [])]
        return [
            self.product.ask(
                self.port, f"/view?filename={i['filename']}&subfolder={i['subfolder']}&type={i['type']}"
            ).body
            for i in images
        ]


def test_the_plain_websocket_loop_on_four_ports_at_once(product: Product):
    """Each client sees its own job from start to end in ComfyUI's order, and nothing of the others'."""

    def client(gpu: int) -> None:
        one = PlainClient(product, product.ports[1 + gpu])
        try:
            for turn in range(3):
                one.events.clear()
                color = COLORS[gpu] + 16 + turn
                job = one.run(coloured(color, 0.2))
                assert [color_of(picture) for picture in one.pictures(job)] == [color]
                named = {event["data"]["prompt_id"] for event in one.events if "prompt_id" in event["data"]}
                assert named == {job}
                kinds = [event["type"] for event in one.events if event["type"] != "status"]
                assert kinds[0] == "execution_start"
                assert kinds[-2:] == ["execution_success", "executing"]
        finally:
            one.socket.close()

    all_at_once(4, client)


def test_the_same_seed_gives_the_same_picture_on_every_port_at_once(product: Product):
    """Four paintings with one seed side by side: four equal pictures, and each client saw its own progress."""
    found: list[bytes] = [b""] * 4

    def client(gpu: int) -> None:
        one = PlainClient(product, product.ports[1 + gpu])
        try:
            (picture,) = one.pictures(one.run(painting(77, f"seed{gpu}")))
        finally:
            one.socket.close()
        steps = [event["data"]["value"] for event in one.events if event["type"] == "progress"]
        assert steps[-1] == 4
        with Image.open(io.BytesIO(picture)) as image:
            found[gpu] = image.tobytes()

    all_at_once(4, client)
    assert found[0]
    assert found == [found[0]] * 4


def test_a_client_that_connects_again_gets_its_events(product: Product):
    """Same clientId, the old connection still there: the new one sees the job (ComfyUI #16010 loses it)."""
    port = product.ports[1]
    old = PlainClient(product, port)
    new = PlainClient.__new__(PlainClient)
    new.product, new.port, new.id, new.events, new.previews = product, port, old.id, [], []
    new.socket = websocket.create_connection(f"ws://127.0.0.1:{port}/ws?clientId={old.id}", timeout=30)
    try:
        job = new.run(coloured(0x0A0B0C, 0.1))
        assert [color_of(picture) for picture in new.pictures(job)] == [0x0A0B0C]
    finally:
        new.socket.close()
        old.socket.shutdown()


def test_what_a_bridge_carries_is_counted(product: Product):
    """Open bridges, bytes and messages towards the client move with a job's events, on its own GPU only."""

    def numbers(gpu: int) -> tuple[float, float, float]:
        both = f'{{direction="to_client",gpu="{gpu}"}}'
        return (
            product.metric(f'comfy_gateway_bridges_open{{gpu="{gpu}"}}'),
            product.metric(f"comfy_gateway_bridge_bytes_total{both}"),
            product.metric(f"comfy_gateway_bridge_messages_total{both}"),
        )

    before, other = numbers(2), numbers(3)
    one = PlainClient(product, product.ports[3])
    try:
        one.run(coloured(0x010203, 0.1))
        assert numbers(2)[0] == before[0] + 1
        wait_until(lambda: numbers(2)[2] - before[2] >= len(one.events), 20, "its messages are counted")
        assert numbers(2)[1] - before[1] > sum(len(json.dumps(event)) for event in one.events) / 2
    finally:
        one.socket.close()
    assert numbers(3) == other
    wait_until(lambda: numbers(2)[0] == before[0], 20, "the bridge is closed")
