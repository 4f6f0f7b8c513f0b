"""The name of the answer to /object_info: the same while nothing changes, another one at once when anything does."""

import contextlib
import sys
import types
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from backend.overlay import listing, routing


def node(*files: str, **attributes: Any) -> type:
    """A node that offers these files."""
    offered = list(files)
    made = type("Loader", (), {"INPUT_TYPES": classmethod(lambda cls: {"required": {"name": (list(offered),)}})})
    made.offered = offered  # type: ignore[attr-defined]
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_the_name_stays_while_nothing_changes():
    """However often it is asked for, with lists made anew each time."""
    nodes = {"A": node("a.safetensors"), "B": node("b")}
    assert listing.name_of(nodes, {}) == listing.name_of(nodes, {})


def test_a_new_file_makes_another_name():
    """What a node offers is a part of it, whatever it looks at to know."""
    nodes = {"A": node("a")}
    before = listing.name_of(nodes, {})
    nodes["A"].offered.append("new")  # type: ignore[attr-defined]
    assert listing.name_of(nodes, {}) != before


@pytest.mark.parametrize("name", ["RETURN_TYPES", "CATEGORY", "DESCRIPTION"])
def test_other_words_of_a_node_count(name: str):
    """Outputs and texts that a node pack changes while it runs."""
    loader = node("a", **{name: ("X",)})
    before = listing.name_of({"A": loader}, {})
    setattr(loader, name, ("Y",))
    assert listing.name_of({"A": loader}, {}) != before


def test_nodes_that_come_go_or_get_another_title_count():
    """So does their order, in which the answer has them."""
    first, second = node("a"), node("b")
    names = [
        listing.name_of(nodes, shown)
        for nodes, shown in (
            ({"A": first}, {}),
            ({"A": first}, {"A": "Title"}),
            ({"A": second}, {}),
            ({"A": first, "B": second}, {}),
            ({"B": second, "A": first}, {}),
            ({}, {}),
        )
    ]
    assert len(set(names)) == len(names)


def test_a_node_that_raises_is_no_hindrance():
    """It is missing from the answer; when it recovers the name is another one."""
    broken = [True]

    def inputs(cls: type) -> dict[str, Any]:
        if broken[0]:
            raise RuntimeError("no network")
        return {}

    nodes = {"A": type("A", (), {"INPUT_TYPES": classmethod(inputs)})}
    before = listing.name_of(nodes, {})
    assert before == listing.name_of(nodes, {})
    broken[0] = False
    assert listing.name_of(nodes, {}) != before


def test_nodes_with_a_schema_are_asked_for_it():
    """Later versions' nodes define themselves anew each time."""
    offered = ["a"]

    class Schema:
        def get_v1_info(self, cls: type) -> list[str]:
            return list(offered)

    nodes = {"A": type("A", (), {"FINALIZE_SCHEMA": classmethod(lambda cls: Schema())})}
    before = listing.name_of(nodes, {})
    assert before == listing.name_of(nodes, {})
    offered.append("b")
    assert listing.name_of(nodes, {}) != before


async def test_the_answer_is_made_once_while_its_name_holds(monkeypatch: pytest.MonkeyPatch):
    """Who names the answer gets a 304 without ComfyUI making it; after a change it is made, with another name."""
    loader = node("a")
    nodes, folders, server = (types.ModuleType(name) for name in ("nodes", "folder_paths", "server"))
    nodes.NODE_CLASS_MAPPINGS = {"Loader": loader}  # type: ignore[attr-defined]
    nodes.NODE_DISPLAY_NAME_MAPPINGS = {}  # type: ignore[attr-defined]
    folders.cache_helper = contextlib.nullcontext()  # type: ignore[attr-defined]
    started: list[tuple[str, ...]] = []
    server.asset_seeder = types.SimpleNamespace(start=lambda *, roots: started.append(roots))  # type: ignore[attr-defined]
    for name, module in (("nodes", nodes), ("folder_paths", folders), ("server", server)):
        monkeypatch.setitem(sys.modules, name, module)
    made = []

    async def object_info(request: web.Request) -> web.StreamResponse:
        made.append(1)
        return web.json_response({"Loader": loader.INPUT_TYPES()})  # type: ignore[attr-defined]

    async def handle(request: web.Request) -> web.StreamResponse:
        return await routing._object_info(object_info, request)

    app = web.Application()
    app.router.add_get("/object_info", handle)
    async with TestClient(TestServer(app)) as client:
        first = await client.get("/object_info")
        etag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"
        again = await client.get("/object_info", headers={"If-None-Match": etag})
        assert (again.status, again.headers["ETag"], len(made)) == (304, etag, 1)
        assert started == [("models", "input", "output")]
        loader.offered.append("new")  # type: ignore[attr-defined]
        changed = await client.get("/object_info", headers={"If-None-Match": etag})
        assert (changed.status, len(made)) == (200, 2)
        assert "new" in await changed.text()
        assert changed.headers["ETag"] != etag
