"""Answers of the gateway's own, as bytes."""

import pytest

from gateway.errors import BACKEND_UNAVAILABLE, RATE_LIMITED, GatewayError
from gateway.wire.answer import Answer, error_answer, render, wants_page


def test_an_answer_is_rendered():
    """Status, fields, length, connection and id; HEAD leaves the body away and keeps the length."""
    answer = Answer(200, ((b"A", b"1"),), b"hello")
    data = render(answer, connection=b"close", request_id=b"me", with_body=True)
    head = b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 5\r\nConnection: close\r\nX-Request-ID: me\r\n\r\n"
    assert data == head + b"hello"
    assert render(answer, connection=b"close", request_id=b"me", with_body=False) == head


def test_answers_without_a_body_have_no_length():
    """204 and 304."""
    assert render(Answer(204), connection=b"", request_id=b"", with_body=True) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert b"Length" not in render(Answer(304), connection=b"", request_id=b"", with_body=True)


def test_an_unknown_status_has_no_phrase():
    """It is still an answer."""
    assert render(Answer(299), connection=b"", request_id=b"", with_body=True).startswith(b"HTTP/1.1 299 \r\n")


def test_errors_carry_their_fields():
    """Never stored; Retry-After at least a second."""
    answer = error_answer(GatewayError(RATE_LIMITED, "Slowly.", retry_after=0, headers=((b"RateLimit", b"x"),)))
    assert answer.status == 429
    assert dict(answer.headers)[b"Retry-After"] == b"1"
    assert dict(answer.headers)[b"RateLimit"] == b"x"
    assert dict(answer.headers)[b"Cache-Control"] == b"no-store"


def test_a_page_of_an_error_is_html_without_any_of_the_texts_own():
    """It says the same, escaped, and comes back by itself when that may help."""
    answer = error_answer(GatewayError(BACKEND_UNAVAILABLE, "No <b>.", "Wait & see.", retry_after=7), page=True)
    fields = dict(answer.headers)
    assert fields[b"Content-Type"] == b"text/html; charset=utf-8"
    assert (fields[b"Retry-After"], fields[b"Refresh"], fields[b"Cache-Control"]) == (b"7", b"7", b"no-store")
    assert b"<h1>No &lt;b&gt;.</h1><p>Wait &amp; see.</p>" in answer.body
    assert b"Refresh" not in dict(error_answer(GatewayError(RATE_LIMITED, "No."), page=True).headers)


@pytest.mark.parametrize(
    ("method", "fields", "wanted"),
    [
        (b"GET", {b"Accept": b"text/html,*/*;q=0.8"}, True),
        (b"GET", {b"accept": b"text/html", b"Sec-Fetch-Mode": b"navigate"}, True),
        (b"GET", {b"Accept": b"text/html", b"Sec-Fetch-Mode": b"cors"}, False),
        (b"POST", {b"Accept": b"text/html"}, False),
        (b"GET", {b"Accept": b"*/*"}, False),
        (b"GET", {}, False),
    ],
)
def test_pages_are_for_people(method, fields, wanted):
    """Programs, and a page's own scripts, get JSON."""
    assert wants_page(method, list(fields.items())) is wanted
