"""Answers of the gateway's own, as bytes."""

from gateway.errors import RATE_LIMITED, GatewayError
from gateway.wire.answer import Answer, error_answer, render


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
