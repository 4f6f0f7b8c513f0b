"""The access log: one line per request, many at a time."""

import logging

from gateway.observe.access import LOGGER, AccessLog


def write(log: AccessLog, target: bytes = b"/") -> None:
    log.line(client="c", method=b"GET", target=target, status=200, gpu="0", kind="ui", request_id=b"i")


def test_lines_go_out_together(caplog):
    """Nothing is written before a flush, and nothing twice."""
    with caplog.at_level(logging.INFO, LOGGER):
        log = AccessLog(enabled=True)
        write(log)
        write(log, b'/"\r\n\x1b\xff\\')
        assert caplog.messages == []
        log.flush()
        log.flush()
    (message,) = caplog.messages
    lines = message.split("\n")
    assert len(lines) == 2
    assert lines[0] == 'c "GET /" 200 in=0 out=0 time=0.0000 backend=0.0000 gpu=0 kind=ui id=i'
    assert '"GET /\\x22\\x0d\\x0a\\x1b\\xff\\x5c"' in lines[1]


def test_many_lines_do_not_wait(caplog):
    """What is held back is bounded."""
    with caplog.at_level(logging.INFO, LOGGER):
        log = AccessLog(enabled=True)
        for _ in range(600):
            write(log)
    assert len(caplog.messages) == 1


def test_nobody_listens(caplog):
    """Off by setting, or by the logger's level; the level is looked at again at each flush."""
    with caplog.at_level(logging.INFO, LOGGER):
        assert not AccessLog(enabled=False).enabled
    with caplog.at_level(logging.WARNING, LOGGER):
        log = AccessLog(enabled=True)
        assert not log.enabled
    with caplog.at_level(logging.INFO, LOGGER):
        log.flush()
        assert log.enabled
