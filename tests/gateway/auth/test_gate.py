"""Who may pass: by key, by cookie, from where, and with which scope."""

import pytest

from gateway.auth.gate import ANYBODY, Gate, needed, without_credentials
from gateway.auth.keys import Key, Quota, Ring, Scope, make
from gateway.auth.origin import Origins, same, shared_lines
from gateway.auth.quotas import Quotas
from gateway.auth.session import COOKIE, Sessions
from gateway.config_auth import Auth
from gateway.errors import GatewayError
from gateway.request import Kind, classify, resolved
from gateway.wire.head import RequestHead, RequestReader

FAR = "203.0.113.9"
NOW = 1_000_000.0


def asked(target: str = "/queue", *lines: str, method: str = "GET", host: str = "gpu.example:8181") -> RequestHead:
    text = "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()
    return RequestReader(max_line=9999, max_fields=50).read(text, len(text))


def keyed(scope: Scope = Scope.SUBMIT, auth: Auth | None = None, quota: Quota | None = None) -> tuple[Gate, Key, str]:
    key, token = make("anna", scope, quota or Quota(), 0.0)
    return Gate(auth or Auth(), Ring([key]), Sessions(b"s" * 32, 60.0), "gpubox"), key, token


def passed(gate: Gate, head: RequestHead, address: str = FAR, now: float = NOW) -> str:
    """The name of who passes, ``-`` for somebody without a key, or the status of the refusal."""
    path = resolved(head.target.partition(b"?")[0])
    kind = classify(head.method, head.target, upgrade=head.fields.upgrade)
    try:
        who = gate.passes(head, path, address, kind, now)
    except GatewayError as error:
        return str(error.kind.status)
    return who.name or "-"


def test_without_keys_everybody_passes():
    """Who makes no keys needs none."""
    gate = Gate(Auth(), Ring(), None)
    assert passed(gate, asked()) == "-"
    assert passed(gate, asked("/free", method="POST")) == "-"


def test_a_key_passes_in_either_field():
    """``Authorization: Bearer`` and ``X-API-Key`` mean the same."""
    gate, _, token = keyed()
    assert passed(gate, asked("/queue", f"Authorization: Bearer {token}")) == "anna"
    assert passed(gate, asked("/queue", f"authorization: bearer {token}")) == "anna"
    assert passed(gate, asked("/queue", f"X-API-Key: {token}")) == "anna"
    assert passed(gate, asked("/queue")) == "401"
    assert passed(gate, asked("/queue", "Authorization: Basic abc")) == "401"


def test_a_wrong_key_is_no_key_even_on_loopback():
    """Whoever shows a key wants to be that one."""
    gate, _, token = keyed()
    assert passed(gate, asked("/queue", f"X-API-Key: {token}x"), "127.0.0.1") == "401"


def test_loopback_needs_no_key_unless_configured():
    """The machine's own users pass, where they are trusted."""
    gate, _, _ = keyed()
    assert passed(gate, asked(), "127.0.0.1") == "-"
    assert passed(gate, asked(), "::1") == "-"
    gate, _, _ = keyed(auth=Auth(loopback=False))
    assert passed(gate, asked(), "127.0.0.1") == "401"


def test_browsers_are_led_to_the_login_page():
    """A page is redirected with the way back; what scripts ask for is 401."""
    gate, _, _ = keyed()
    head = asked("/?a=1&b=2", "Accept: text/html,*/*")
    with pytest.raises(GatewayError) as caught:
        gate.passes(head, b"/", FAR, Kind.UI, NOW)
    assert caught.value.kind.status == 303
    assert dict(caught.value.headers)[b"Location"] == b"/gateway/login?next=/%3Fa%3D1%26b%3D2"
    assert passed(gate, asked("/", "Accept: */*")) == "401"
    assert passed(gate, asked("/gateway/login")) == "-"


def test_a_cookie_stands_for_its_key_until_its_time():
    """Made for a key, it passes as that; expired, forged, or of a revoked key it does not."""
    gate, key, _ = keyed()
    assert gate.sessions is not None
    value = gate.sessions.make(key.id, NOW)
    cookie = f"Cookie: a=b; {COOKIE}={value}; c=d"
    assert passed(gate, asked("/queue", cookie)) == "anna"
    assert passed(gate, asked("/queue", cookie), now=NOW + 61) == "401"
    forged = value[:-1] + ("0" if value[-1] != "0" else "1")
    for bad in (forged, "", ".", "..", value.replace(key.id, "00000000"), "x.y.z", "ü"):
        assert passed(gate, asked("/queue", f"Cookie: {COOKIE}={bad}")) == "401"
    gate.renew(Auth(), Ring([make("ben", Scope.READ, Quota(), 0.0)[0]]), gate.sessions)
    assert passed(gate, asked("/queue", cookie)) == "401"


def test_a_connection_that_repeats_itself_notices_a_revoked_key():
    """What was found for one request holds for the next only while the keys are the same."""
    gate, _, token = keyed()
    head = asked("/queue", f"X-API-Key: {token}")
    assert passed(gate, head) == "anna"
    gate.renew(Auth(), Ring([make("ben", Scope.READ, Quota(), 0.0)[0]]), gate.sessions)
    assert passed(gate, head) == "401"


def test_wrong_keys_are_limited_per_address_and_right_ones_are_not():
    """After some failures an address is told to wait; a right key passes all the same."""
    gate, _, token = keyed()
    wrong = [passed(gate, asked("/queue", f"X-API-Key: cgw_{number}")) for number in range(30)]
    assert wrong[0] == "401"
    assert wrong[-1] == "429"
    assert passed(gate, asked("/queue", f"X-API-Key: {token}"), "198.51.100.1") == "anna"
    right = [passed(gate, asked("/queue", f"X-API-Key: {token}"), "198.51.100.2") for _ in range(30)]
    assert set(right) == {"anna"}
    assert passed(gate, asked("/queue", f"X-API-Key: {token}")) == "anna"
    assert passed(gate, asked("/queue", "X-API-Key: cgw_x"), FAR, NOW + 600) == "401"


@pytest.mark.parametrize(
    ("method", "target", "scope"),
    [
        ("GET", "/queue", Scope.READ),
        ("GET", "/", Scope.READ),
        ("GET", "/metrics", Scope.READ),
        ("HEAD", "/view?filename=a.png", Scope.READ),
        ("POST", "/prompt", Scope.SUBMIT),
        ("POST", "/api/upload/image", Scope.SUBMIT),
        ("POST", "/interrupt", Scope.SUBMIT),
        ("DELETE", "/jobs/1", Scope.SUBMIT),
        ("POST", "/userdata/workflows%2Fa.json", Scope.SUBMIT),
        ("POST", "/free", Scope.ADMIN),
        ("GET", "/admin/backends/0/log", Scope.ADMIN),
        ("POST", "/jobs/1/rerun", Scope.SUBMIT),
        ("GET", "/dashboard/events", Scope.READ),
        ("POST", "/api/free", Scope.ADMIN),
        ("POST", "//api//FREE/", Scope.ADMIN),
        ("POST", "/x/../%66ree", Scope.ADMIN),
        ("POST", "/preload", Scope.ADMIN),
        ("POST", "/admin/gpus/0/drain", Scope.ADMIN),
        ("GET", "/internal/logs", Scope.ADMIN),
        ("GET", "/api/manager/reboot", Scope.ADMIN),
        ("POST", "/v2/customnode/install", Scope.ADMIN),
    ],
)
def test_what_needs_which_scope(method: str, target: str, scope: Scope):
    """Looking, working, and what concerns everybody; no spelling of a path is a way around."""
    path = resolved(target.partition("?")[0].encode())
    assert needed(method.encode(), path, classify(method.encode(), target.encode(), upgrade=False)) is scope


def test_a_lesser_key_is_told_what_it_lacks():
    """403, not 401: it is known, it may not."""
    gate, _, token = keyed(Scope.READ)
    assert passed(gate, asked("/queue", f"X-API-Key: {token}")) == "anna"
    assert passed(gate, asked("/prompt", f"X-API-Key: {token}", "Content-Length: 2", method="POST")) == "403"
    gate, _, token = keyed(Scope.SUBMIT)
    assert passed(gate, asked("/free", f"X-API-Key: {token}", method="POST")) == "403"


def test_health_is_open():
    """A load balancer has no key."""
    gate, _, _ = keyed()
    assert passed(gate, asked("/health")) == "-"
    assert passed(gate, asked("/metrics")) == "401"


SITE = "Origin: https://evil.example"


def test_pages_of_other_sites_lure_nobody_into_what_concerns_everybody():
    """ComfyUI-Manager changes the machine by GET, which a picture or a link sends without ``Origin``."""
    across = "Sec-Fetch-Site: cross-site"
    for gate in (Gate(Auth(), Ring(), None), keyed()[0]):
        for path in ("/manager/reboot", "/api/v2/manager/queue/start", "/customnode/%67etlist", "/gpu1/../manager/x"):
            assert passed(gate, asked(path, across), "127.0.0.1") == "403", path
            assert passed(gate, asked(path, across, SITE), "127.0.0.1") == "403", path
        assert passed(gate, asked("/manager/reboot", "Sec-Fetch-Site: same-origin"), "127.0.0.1") == "-"
        assert passed(gate, asked("/manager/reboot", "Sec-Fetch-Site: none"), "127.0.0.1") == "-"
        assert passed(gate, asked("/manager/reboot"), "127.0.0.1") == "-"
        assert passed(gate, asked("/queue", across), "127.0.0.1") == "-"
    gate = Gate(Auth(origins=("https://evil.example",)), Ring(), None)
    assert passed(gate, asked("/manager/reboot", across, SITE), "127.0.0.1") == "-"
    assert passed(gate, asked("/manager/reboot", across), "127.0.0.1") == "403"
SOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a2V5", "Sec-WebSocket-Version: 13")


def test_pages_of_other_sites_may_not_write_or_listen():
    """Also without keys: the browser is on the inside, the page is not."""
    for gate in (Gate(Auth(), Ring(), None), keyed()[0]):
        assert passed(gate, asked("/prompt", SITE, method="POST"), "127.0.0.1") == "403"
        assert passed(gate, asked("/ws", SITE, *SOCKET), "127.0.0.1") == "403"
        assert passed(gate, asked("/prompt", "Origin: null", method="POST"), "127.0.0.1") == "403"
        own = "Origin: http://127.0.0.1:8181"
        assert passed(gate, asked("/prompt", own, SITE, method="POST", host="127.0.0.1:8181"), "127.0.0.1") == "403"
        assert passed(gate, asked("/prompt", own, method="POST", host="127.0.0.1:8181"), "127.0.0.1") == "-"
        other_port = "Origin: http://127.0.0.1:9999"
        assert passed(gate, asked("/prompt", other_port, method="POST", host="127.0.0.1:8181"), "127.0.0.1") == "403"


def test_a_name_that_anybody_could_give_this_machine_is_not_its_own():
    """DNS rebinding: origin and host agree, and only a name that is known proves anything. A key proves it, too."""
    gate, _, token = keyed()
    rebound = ("/prompt", "Origin: http://evil.example:8181")
    assert passed(gate, asked(*rebound, method="POST", host="evil.example:8181"), "127.0.0.1") == "403"
    with_key = asked(*rebound, f"X-API-Key: {token}", method="POST", host="evil.example:8181")
    assert passed(gate, with_key, "127.0.0.1") == "anna"
    for name in ("localhost", "127.0.0.1", "[::1]", "gpubox", "comfy.localhost", "192.168.1.4"):
        own = asked("/prompt", f"Origin: http://{name}:8181", method="POST", host=f"{name}:8181")
        assert passed(gate, own, "127.0.0.1") == "-"
    gate, _, _ = keyed(auth=Auth(origins=("http://evil.example:8181",)))
    assert passed(gate, asked(*rebound, method="POST", host="evil.example:8181"), "127.0.0.1") == "-"


def test_listed_sites_may_and_read_the_answers():
    """The allow-list opens writes, sockets and CORS; an asterisk opens it for all."""
    gate = Gate(Auth(origins=("https://studio.example",)), Ring(), None)
    listed = asked("/prompt", "Origin: https://studio.example", method="POST")
    assert passed(gate, listed) == "-"
    assert gate.granted(listed) == b"https://studio.example"
    assert gate.granted(asked("/prompt", SITE, method="POST")) == b""
    assert Gate(Auth(origins=("*",)), Ring(), None).granted(asked("/", SITE)) == b"https://evil.example"
    assert Gate(Auth(), Ring(), None).granted(asked("/", SITE)) == b""


def test_same_origin_is_by_host_and_port():
    """A default port may be left out; case does not count; everything else does."""
    assert same(b"http://A.example", b"a.example:80")
    assert same(b"https://a.example:443", b"a.example")
    assert not same(b"https://a.example", b"a.example:80")
    assert not same(b"http://a.example", b"b.example")
    assert not same(b"null", b"a.example")
    assert not same(b"", b"")
    assert not Origins(())


def test_our_credentials_do_not_reach_the_backend():
    """Keys and our cookie are taken out; what is somebody else's passes byte for byte."""
    _, _, token = keyed()
    mine = (
        b"Host: x\r\nAuthorization: Bearer %b\r\nX-API-Key: %b\r\nCookie: a=b; %b=secret; c=d\r\nAccept: */*\r\n"
        % (token.encode(), token.encode(), COOKIE.encode())
    )
    assert without_credentials(mine) == b"Host: x\r\nCookie: a=b; c=d\r\nAccept: */*\r\n"
    assert without_credentials(b"Cookie: %b=1\r\nHost: x\r\n" % COOKIE.encode()) == b"Host: x\r\n"
    theirs = b"Host: x\r\nAuthorization: Basic dTpw\r\nCookie: a=b\r\nX-Cookie: %b=1\r\n" % COOKIE.encode()
    assert without_credentials(theirs) == theirs


def test_the_backend_does_not_judge_a_listed_site_again():
    """ComfyUI would refuse its Origin; what is not listed keeps it."""
    gate = Gate(Auth(origins=("https://studio.example",)), Ring(), None)
    lines = b"Host: x\r\nOrigin: %b\r\nSec-Fetch-Site: cross-site\r\nAccept: a\r\n"
    listed = asked("/prompt", "Origin: https://studio.example", method="POST")
    assert gate.for_backend(listed, lines % b"https://studio.example") == b"Host: x\r\nAccept: a\r\n"
    other = asked("/prompt", SITE, method="POST")
    assert gate.for_backend(other, lines % b"https://evil.example") == lines % b"https://evil.example"


def test_cors_lines_are_ours_alone():
    """What the backend says about other sites is replaced, not doubled."""
    lines = b"\r\nContent-Length: 2\r\naccess-control-allow-origin: *\r\nX: y\r\n"
    shared = shared_lines(lines, b"https://a.example")
    assert shared.lower().count(b"access-control-allow-origin") == 1
    assert b"Access-Control-Allow-Origin: https://a.example\r\n" in shared
    assert shared.startswith(b"\r\nContent-Length: 2\r\nX: y\r\n")
    assert shared.endswith(b"\r\n")


def test_quotas_name_what_is_used_up():
    """Rate, jobs at a time and seconds a day, each with the time to wait; who has no key has no quota."""
    gate, _, token = keyed(quota=Quota(2.0, 3, 100.0))
    quotas = Quotas(gate)
    who = gate.passes(asked("/queue", f"X-API-Key: {token}"), b"/queue", FAR, Kind.READ, NOW)
    for _ in range(3):
        quotas.rate(who, NOW)
    with pytest.raises(GatewayError, match=r"submissions per second \(2\)") as caught:
        quotas.rate(who, NOW)
    assert caught.value.retry_after == 1
    quotas.rate(who, NOW + 1.0)
    quotas.jobs("anna", lambda _owner: (2, 99.0), NOW)
    with pytest.raises(GatewayError, match=r"jobs at a time \(3\)"):
        quotas.jobs("anna", lambda _owner: (3, 0.0), NOW)
    with pytest.raises(GatewayError, match=r"GPU-seconds a day \(100\)") as caught:
        quotas.jobs("anna", lambda _owner: (0, 100.0), NOW)
    assert caught.value.retry_after == int(86_400 - NOW % 86_400) + 1
    for _ in range(9):
        quotas.rate(ANYBODY, NOW)
    quotas.jobs("", lambda _owner: (99, 1e9), NOW)
