"""``[auth] isolate`` before a backend that knows more ways to a job than the gateway keeps to their owners."""

from pathlib import Path

from gateway.auth import command
from gateway.auth.guard import Guard
from gateway.auth.keys import Quota, Scope
from gateway.config import Config
from gateway.config_auth import Auth
from tests.doubles.jobs_house import house

_SPELLINGS = (
    "/api/%6aobs",
    "/%61pi/jobs",
    "/api/api/jobs",
    "/api/api/api/%6Aobs",
    "/api//jobs",
    "/api/./jobs",
    "/api/x/../jobs",
    "/api/x/%2e%2e/jobs",
    "/api%2Fjobs",
    "//api/jobs",
    "/docs/../api/jobs",
    "/api/jobs/",
    "/api/%6aobs/a",
    "/api/api/jobs/a",
    "/api/jobs/a/b",
    "/api/api/view?filename=a.png",
    "//view?filename=a.png",
    "/x/../view?filename=a.png",
    "/api/api/history",
    "//history/a",
    "//queue",
    "/api/api/assets",
)
_WRITES = (
    "/api/%6aobs/cancel",
    "/api/api/jobs/cancel",
    "/api/%6aobs/a/cancel",
    "/api/api/jobs/a/cancel",
    "/api//queue",
    "//interrupt",
    "/api/api/history",
)


async def test_no_spelling_of_a_path_leads_past_the_owners(tmp_path: Path):
    """What some reader takes for a list of jobs never arrives, by any port or prefix; plainly spelt it is ours.

    A key that sees all is forwarded as before.
    """
    auth = tmp_path / "auth"
    scopes = {"anna": Scope.SUBMIT, "ben": Scope.SUBMIT, "chief": Scope.ADMIN}
    made = {name: command.add(auth, name, scope, Quota())[0] for name, scope in scopes.items()}
    guard = Guard(Config(auth=Auth(folder=str(auth), loopback=False, isolate=True)))
    async with house(tmp_path, guard=guard) as here, here.client() as anna:
        order = b'{"prompt": {"1": {}}, "prompt_id": "a"}'
        assert (await anna.get("/prompt", f"X-API-Key: {made['anna']}", method="POST", body=order)).status == 200

        async def ask(who: str, target: str, method: str, gpu: int | None) -> int:
            body = b'{"job_ids": ["a"], "delete": ["a"], "prompt_id": "a"}' if method == "POST" else b""
            async with here.client(gpu) as client:
                return (await client.get(target, f"X-API-Key: {made[who]}", method=method, body=body)).status

        asked = [("GET", each) for each in _SPELLINGS] + [("POST", each) for each in _WRITES]
        asked += [("PUT", "/api/jobs"), ("DELETE", "/api/jobs/a"), ("HEAD", "/api/%6aobs")]
        for method, target in asked:
            for gpu, way in ((0, target), (None, target), (None, "/gpu0" + target)):
                status = await ask("ben", f"{way}{'&' if '?' in way else '?'}by=ben", method, gpu)
                assert status in {403, 404, 405}, (method, way, gpu)
        assert not [each.target for each in here.backend.seen if b"by=ben" in each.target]
        assert here.comfy.told == []
        assert await ask("ben", "/api/jobs", "GET", 0) == 200
        assert await ask("ben", "/queue", "GET", 0) == 200
        assert await ask("ben", "/history/", "GET", 0) == 200
        assert await ask("chief", "/api/%6aobs/a?by=chief", "GET", 0) == 200
        assert [each.target for each in here.backend.seen if b"by=chief" in each.target]
