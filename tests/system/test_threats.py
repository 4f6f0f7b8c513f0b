"""Each line of docs/threats.md, tried against a gateway with keys and TLS."""

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import websocket

from gateway.auth import command
from gateway.auth.keys import Quota, Scope
from tests.doubles.product import GENEROUS, ROOT, Answer, Product
from tests.doubles.prompts import sleeping, tiny
from tests.doubles.wait import wait_until
from tests.gateway.auth.test_certificate import made, needs_openssl

pytestmark = needs_openssl


@dataclass
class House:
    """A gateway that trusts nobody without a key, and the keys to it."""

    product: Product
    keys: Mapping[str, str]
    trust: ssl.SSLContext

    @property
    def port(self) -> int:
        return self.product.ports[1]

    def ask(
        self,
        target: str,
        *lines: tuple[str, str],
        method: str = "GET",
        body: bytes | None = None,
        key: str = "",
        port: int = 0,
    ) -> Answer:
        """One exchange over TLS, with a key if one is named."""
        headers = dict(lines) | ({"X-API-Key": self.keys.get(key, key)} if key else {})
        connection = http.client.HTTPSConnection("127.0.0.1", port or self.port, timeout=60, context=self.trust)
        try:
            connection.request(method, target, body=body, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()

    def submit(self, key: str, prompt: object) -> Answer:
        return self.ask("/prompt", method="POST", body=json.dumps({"prompt": prompt}).encode(), key=key)

    def listen(self, *lines: str) -> websocket.WebSocket:
        """A WebSocket; raises ``WebSocketBadStatusException``."""
        return websocket.create_connection(
            f"wss://127.0.0.1:{self.port}/ws", timeout=60, sslopt={"context": self.trust}, header=list(lines)
        )


@pytest.fixture(scope="module")
def house(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Keys of every scope, one with small quotas, and a certificate of its own."""
    folder = tmp_path_factory.mktemp("house")
    auth = folder / "data" / "auth"
    keys = {
        "reader": command.add(auth, "reader", Scope.READ, Quota())[0],
        "worker": command.add(auth, "worker", Scope.SUBMIT, Quota())[0],
        "chief": command.add(auth, "chief", Scope.ADMIN, Quota())[0],
        "small": command.add(auth, "small", Scope.SUBMIT, Quota(jobs=1))[0],
        "fast": command.add(auth, "fast", Scope.SUBMIT, Quota(requests=1.0))[0],
        "gone": command.add(auth, "gone", Scope.SUBMIT, Quota())[0],
    }
    tls = made(folder, "cert", 30)
    settings = GENEROUS + (
        f'[tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n'
        '[auth]\nloopback = false\norigins = ["https://studio.example"]\n'
    )
    one = Product(folder, gpus=1, behind=product.url, arguments=("--no-backend",), settings=settings)
    try:
        trust = ssl.create_default_context(cafile=tls.certificate)
        yield House(one.start().ready(), keys, trust)
        assert "Traceback" not in one.log(), one.log()
        for token in keys.values():
            assert token not in one.log()
            assert token not in one.said()
    finally:
        one.end()


def test_no_key_no_entry(house: House):
    """Nothing of the API, no page, no metrics, no event without a key; health alone is open."""
    for target in ("/queue", "/history", "/view?filename=a.png", "/metrics", "/object_info", "/gpu0/queue", "/"):
        port = house.product.ports[0] if target in {"/metrics", "/gpu0/queue"} else house.port
        assert house.ask(target, port=port).status == 401, target
    assert house.ask("/prompt", method="POST", body=b"{}").status == 401
    with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
        house.listen()
    assert house.ask("/health", port=house.product.ports[0]).status == 200


def test_guessing_keys_is_slow(house: House):
    """After some wrong keys the address is told to wait; a neighbour's right key passes all the same."""
    statuses = [house.ask("/queue", key=f"cgw_{number:08x}_{'x' * 43}", port=house.port).status for number in range(14)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert house.ask("/queue", key="worker").status == 200


def test_scopes_hold(house: House):
    """Who may read may not submit, who may submit may not free memory, the chief may."""
    assert house.ask("/queue", key="reader").status == 200
    assert house.submit("reader", tiny(1)).status == 403
    assert house.submit("worker", tiny(2)).status == 200
    for spelling in ("/free", "/api/free", "//free", "/%66ree", "/x/../free"):
        assert house.ask(spelling, method="POST", body=b"{}", key="worker").status == 403, spelling
    assert house.ask("/free", method="POST", body=b'{"unload_models": true}', key="chief").status == 200


def test_a_revoked_key_ends(house: House):
    """Within seconds, on connections that are open, too."""
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, timeout=60, context=house.trust)

    def status() -> int:
        connection.request("GET", "/queue", headers={"X-API-Key": house.keys["gone"]})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    try:
        assert status() == 200
        command.revoke(house.product.folder / "data" / "auth", "gone")
        wait_until(lambda: status() in {401, 429}, 30, "refused")
    finally:
        connection.close()


def test_quotas_hold_in_a_burst(house: House):
    """One job at a time is one, whoever else works; the answer names the quota. Submissions a second, too."""
    first = house.submit("small", sleeping(3.0, 3))
    assert first.status == 200
    second = house.submit("small", sleeping(3.0, 4))
    assert second.status == 429
    assert "jobs at a time (1)" in second.json()["error"]["message"]
    assert int(second.headers["Retry-After"]) >= 1
    assert house.submit("worker", tiny(5)).status == 200
    wait_until(lambda: house.submit("small", tiny(6)).status == 200, 60, "its job has ended")
    statuses = [house.submit("fast", tiny(10 + number)).status for number in range(6)]
    assert 200 in statuses
    assert 429 in statuses


def test_pages_of_other_sites_do_nothing(house: House):
    """Not with a visitor's cookie either: no write, no socket, and no answer that their scripts could read."""
    login = house.ask("/gateway/login", method="POST", key="worker")
    cookie = login.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" in cookie
    carried = ("Cookie", cookie.split(";")[0])
    evil, listed = ("Origin", "https://evil.example"), ("Origin", "https://studio.example")
    body = json.dumps({"prompt": tiny(7)}).encode()
    assert house.ask("/prompt", carried, evil, method="POST", body=body).status == 403
    assert house.ask("/prompt", carried, ("Origin", "null"), method="POST", body=body).status == 403
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        house.listen(f"Cookie: {carried[1]}", "Origin: https://evil.example")
    assert "Access-Control-Allow-Origin" not in house.ask("/queue", carried, evil).headers
    answer = house.ask("/prompt", carried, listed, method="POST", body=body)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://studio.example"
    asked = ("Access-Control-Request-Method", "POST")
    assert house.ask("/prompt", listed, asked, method="OPTIONS").headers["Access-Control-Allow-Methods"]
    own = house.listen(f"Cookie: {carried[1]}", f"Origin: https://127.0.0.1:{house.port}")
    own.close()


def test_a_login_cannot_be_made_up_or_lead_elsewhere(house: House):
    """A forged cookie is none; the way back from the login page stays on this host; a wrong key gives no cookie."""
    cookie = house.ask("/gateway/login", method="POST", key="reader").headers["Set-Cookie"].split(";")[0]
    assert house.ask("/queue", ("Cookie", cookie)).status == 200
    name, _, value = cookie.partition("=")
    key_id, until, signature = value.split(".")
    for forged in (f"{key_id}.{int(until) + 999}.{signature}", f"{key_id}.{until}.{'0' * 64}", f"{key_id}..", "..", ""):
        assert house.ask("/queue", ("Cookie", f"{name}={forged}")).status == 401, forged
    page = house.ask("/gateway/login?next=https://evil.example/")
    assert page.status == 200
    assert b"evil.example" not in page.body
    assert house.ask("/queue", ("Accept", "text/html")).headers["Location"].startswith("/gateway/login?next=/queue")
    wrong = house.ask("/gateway/login", method="POST", key="nonsense")
    assert wrong.status in {401, 429}
    assert "Set-Cookie" not in wrong.headers


def test_credentials_stay_here(house: House):
    """The backend sees neither key nor cookie; errors, metrics and the process list do not either."""
    token = house.keys["chief"]
    for target in ("/metrics", "/nowhere", "/gateway/nothing"):
        answer = house.ask(target, key="chief", port=house.product.ports[0])
        assert token.encode() not in answer.body
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert token not in listed
    saved = (house.product.folder / "data" / "auth" / "keys.json").read_text()
    assert token.split("_", 2)[2] not in saved


def test_the_line_is_encrypted(house: House):
    """Plain HTTP gets nothing, old TLS no handshake, and the certificate is checked by an ordinary client."""
    plain = http.client.HTTPConnection("127.0.0.1", house.port, timeout=30)
    plain.request("GET", "/health")
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.getresponse()
    plain.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, timeout=30, context=old)
    with pytest.raises(OSError, match=r"SSL|TLS|ssl"):
        connection.request("GET", "/health")
    connection.close()
    answer = house.ask("/metrics", key="reader", port=house.product.ports[0]).body.decode()
    ends = re.search(r"^comfy_gateway_certificate_not_after_seconds (\S+)$", answer, re.MULTILINE)
    assert ends
    assert float(ends[1]) > time.time()


def test_nobody_listens_to_the_world_by_accident(tmp_path: Path):
    """Another address than loopback without a key does not start, and ``check`` says so beforehand."""
    product = Product(tmp_path, gpus=1, arguments=("--no-backend",), settings="")
    config = product.config().replace("[listen]\n", '[listen]\nhost = ["127.0.0.1", "127.0.0.2", "0.0.0.0"]\n')
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    for arguments in (["check", "config.toml"], ["up", "--no-backend", "--config", "config.toml"]):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "0.0.0.0" in done.stderr
        assert "comfy-gateway keys add NAME" in done.stderr


def test_each_line_of_the_document_is_tried():
    """Every row names a test that exists, and every test of this module stands in a row."""
    document = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", document))
    here = {name for name in globals() if name.startswith("test_")} - {"test_each_line_of_the_document_is_tried"}
    assert here <= named
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    for name in named - here:
        assert f"def {name}(" in sources, name
