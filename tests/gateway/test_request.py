"""What a request costs is read off its path however it is spelt; a GPU prefix only off the raw one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.request import Kind, Prefix, classify, split_prefix


@pytest.mark.parametrize(
    "target",
    [
        b"/prompt",
        b"/api/prompt",
        b"//api/prompt",
        b"/api//prompt",
        b"/api/%70rompt",
        b"/%61pi/prompt",
        b"/assets/..%2fapi/prompt",
        b"/assets/../api/prompt",
        b"/assets/%2e%2e/prompt",
        b"/./prompt",
        b"/prompt/",
        b"/prompt?front=true",
        b"/API/prompt",
        b"/Prompt",
        b"/../../prompt",
    ],
)
def test_submission_however_spelt(target: bytes) -> None:
    """Every spelling of POST /prompt is charged as a submission."""
    assert classify(b"POST", target, upgrade=False) is Kind.SUBMIT


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        (b"POST", b"/upload/image", Kind.UPLOAD),
        (b"POST", b"/api/upload/mask", Kind.UPLOAD),
        (b"POST", b"/api/assets", Kind.UPLOAD),
        (b"POST", b"/api/interrupt", Kind.CONTROL),
        (b"POST", b"/free", Kind.CONTROL),
        (b"POST", b"/queue", Kind.CONTROL),
        (b"POST", b"/history", Kind.CONTROL),
        (b"POST", b"/api/userdata/workflows%2Fa.json", Kind.CONTROL),
        (b"DELETE", b"/api/userdata/workflows%2Fa.json", Kind.CONTROL),
        (b"PATCH", b"/internal/logs/subscribe", Kind.CONTROL),
        (b"POST", b"/api/settings/Comfy.Theme", Kind.CONTROL),
        (b"POST", b"/assets/a.js", Kind.CONTROL),
        (b"POST", b"/api/jobs/1/cancel", Kind.CONTROL),
        (b"PURGE", b"/", Kind.CONTROL),
        (b"PUT", b"/prompt", Kind.CONTROL),
        (b"GET", b"/prompt", Kind.READ),
        (b"GET", b"/api/object_info", Kind.READ),
        (b"HEAD", b"/view?filename=a.png", Kind.READ),
        (b"OPTIONS", b"/api/prompt", Kind.READ),
        (b"GET", b"/ws", Kind.READ),
        (b"GET", b"/extensions", Kind.READ),
        (b"GET", b"/api/extensions", Kind.READ),
        (b"GET", b"/userdata/a.js", Kind.READ),
        (b"GET", b"/api/userdata/user.css", Kind.READ),
        (b"GET", b"/object_info/a.js", Kind.READ),
        (b"GET", b"/experiment/models/preview/checkpoints/0/a.png", Kind.READ),
        (b"GET", b"/", Kind.UI),
        (b"GET", b"/?x=1", Kind.UI),
        (b"HEAD", b"/assets/index-BKeTeXLp.js", Kind.UI),
        (b"GET", b"/assets/lib/%40primevue/themes/index.mjs", Kind.UI),
        (b"GET", b"/extensions/Some%20Node/js/a.js", Kind.UI),
        (b"GET", b"/templates/default.json", Kind.UI),
        (b"GET", b"/docs/KSampler/en.md", Kind.UI),
        (b"GET", b"/scripts/app.js", Kind.UI),
        (b"GET", b"/user.css", Kind.UI),
        (b"GET", b"/favicon.ico", Kind.UI),
    ],
)
def test_kinds(method: bytes, target: bytes, kind: Kind) -> None:
    """Each route of ComfyUI falls into the bucket of its cost."""
    assert classify(method, target, upgrade=False) is kind


@pytest.mark.parametrize(
    "target",
    [
        b"/assets/..%2fapi/object_info",
        b"/assets/../object_info",
        b"/object_info/..%2fassets%2fa.js",
        b"/api/userdata/..%2f..%2fassets%2fa.js",
        b"/view%2fa.js",
        b"/assets%2fa.js",
        b"//assets/a.js",
        b"/assets//a.js",
        b"/Assets/a.js",
        b"/api/assets/a.js",
        b"/x/../assets/a.js",
        b"/assets/%2e/a.js",
    ],
)
def test_never_static_when_doubtful(target: bytes) -> None:
    """A path that two readers could read differently is not in the bucket that is never refused."""
    assert classify(b"GET", target, upgrade=False) is Kind.READ


@pytest.mark.parametrize("target", [b"/ws", b"/api/ws?clientId=1", b"//ws", b"/w%73"])
def test_event_handshakes(target: bytes) -> None:
    """A WebSocket handshake on /ws is an events request, in any spelling."""
    assert classify(b"GET", target, upgrade=True) is Kind.EVENTS


def test_upgrade_elsewhere_is_a_read() -> None:
    """An upgrade on another path does not get into the bucket that is never refused."""
    assert classify(b"GET", b"/api/queue", upgrade=True) is Kind.READ


_METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE", b"OPTIONS", b"post", b"X"])


@given(method=_METHODS, target=st.binary(max_size=400), upgrade=st.booleans())
def test_any_bytes_have_a_kind(method: bytes, target: bytes, upgrade: bool) -> None:
    """Whatever bytes come as a target, there is one kind; writes are never in a free bucket."""
    kind = classify(method, b"/" + target, upgrade=upgrade)
    assert isinstance(kind, Kind)
    if method not in {b"GET", b"HEAD", b"OPTIONS"}:
        assert kind in {Kind.SUBMIT, Kind.UPLOAD, Kind.CONTROL}


@given(st.data())
def test_encoding_does_not_change_a_kind(data: st.DataObject) -> None:
    """Percent-encoding any letters, and adding slashes or dots, leaves the kind of a write as it was."""
    route, kind = data.draw(
        st.sampled_from([(b"prompt", Kind.SUBMIT), (b"upload/image", Kind.UPLOAD), (b"queue", Kind.CONTROL)])
    )
    path = b""
    for segment in [*data.draw(st.sampled_from([[], [b"api"]])), *route.split(b"/")]:
        path += data.draw(st.sampled_from([b"/", b"//", b"/./", b"/x/../", b"/x/..%2F"]))
        path += b"".join(data.draw(st.sampled_from([b"%c" % c, b"%%%02x" % c, b"%%%02X" % c])) for c in segment)
    assert classify(b"POST", path, upgrade=False) is kind


@pytest.mark.parametrize(
    ("target", "prefix"),
    [
        (b"/gpu0/", Prefix(0, b"/", False)),
        (b"/gpu3/api/userdata/workflows%2Fa.json?x=%2F", Prefix(3, b"/api/userdata/workflows%2Fa.json?x=%2F", False)),
        (b"/gpu1//api/prompt", Prefix(1, b"//api/prompt", False)),
        (b"/gpu0", Prefix(0, b"/", True)),
        (b"/gpu2?a=1", Prefix(2, b"/?a=1", True)),
        (b"/gpu0x", None),
        (b"/gpu00/", None),
        (b"/gpu4/", None),
        (b"/gpu9/", None),
        (b"/%67pu0/", None),
        (b"/GPU0/", None),
        (b"//gpu0/", None),
        (b"/gpu/", None),
        (b"/gpu-1/", None),
        (b"/gpu0%2fprompt", None),
        (b"/", None),
        (b"/gpu" + b"1" * 9000 + b"/", None),
    ],
)
def test_prefix(target: bytes, prefix: Prefix | None) -> None:
    """A GPU prefix is exactly /gpuN/ on the raw path, and what follows keeps every byte."""
    assert split_prefix(target, 4) == prefix


def test_prefix_of_two_digits() -> None:
    """Prefixes count as far as there are GPUs."""
    assert split_prefix(b"/gpu10/a", 11) == Prefix(10, b"/a", False)
    assert split_prefix(b"/gpu10/a", 10) is None
