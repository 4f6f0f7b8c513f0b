"""The log's two forms."""

import io
import json
import logging

from gateway.jobs.record import State, new
from gateway.jobs.told import tell
from gateway.observe.access import LOGGER, AccessLog
from gateway.observe.lines import JsonLines, Line, TextLines, backend_json, backend_text


def written(formatter: logging.Formatter, name: str = "gateway.x") -> tuple[logging.Logger, io.StringIO]:
    """A logger of its own and what it writes."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    log = logging.Logger(name, logging.INFO)
    log.addHandler(handler)
    return log, out


def test_every_line_of_a_json_log_is_one_object():
    """Whatever is logged: several lines, quotes, a trace, fields of its own."""
    log, out = written(JsonLines())
    log.info("two\nlines and a \u2028 %s", '"quote"')
    log.warning(Line("job a1 failed", prompt_id="a1", gpu=2))
    try:
        int("oops")
    except ValueError:
        log.exception("it broke")
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [each["level"] for each in told] == ["info", "warning", "error"]
    assert told[0]["message"] == 'two\nlines and a \u2028 "quote"'
    assert (told[1]["message"], told[1]["prompt_id"], told[1]["gpu"]) == ("job a1 failed", "a1", 2)
    assert "ValueError: invalid literal" in told[2]["trace"]
    assert json.loads(backend_json('say "hi"'))["message"] == 'say "hi"'


def test_a_backends_line_of_a_job_has_its_prompt_id():
    """As a field, taken out of the message; a line that only looks like one is left as it is."""
    told = json.loads(backend_json("1 | [lane 2 job my%20job%5D] Prompt executed"))
    assert (told["message"], told["prompt_id"], told["lane"]) == ("1 | Prompt executed", "my job]", 2)
    told = json.loads(backend_json("[job a1] [GPU 0] text"))
    assert (told["message"], told["prompt_id"]) == ("[GPU 0] text", "a1")
    assert "lane" not in told
    for other in ("[job ] x", "say [job a1] x", "[lane x job a1] y"):
        told = json.loads(backend_json(other))
        assert told["message"] == other
        assert "prompt_id" not in told


def test_every_line_for_people_says_whose_it_is():
    """A trace's lines, too."""
    log, out = written(TextLines())
    log.info("two\nlines")
    assert [line.split(" ")[0] for line in out.getvalue().splitlines()] == ["gateway", "gateway"]
    assert backend_text("x") == "backend | x"


def test_access_lines_are_objects_with_every_field(caplog):
    """Many records of one flush are as many lines, none of them wrapped in another."""
    with caplog.at_level(logging.INFO, LOGGER):
        access = AccessLog(enabled=True, as_json=True)
        for status in (200, 404):
            access.line(
                client="c",
                method=b"GET",
                target=b'/"\xff\r\n',
                status=status,
                gpu="1",
                kind="read",
                request_id=b"i",
                seconds=0.5,
            )
        access.flush()
    (record,) = caplog.records
    lines = [json.loads(line) for line in JsonLines().format(record).split("\n")]
    assert [each["status"] for each in lines] == [200, 404]
    assert lines[0]["path"] == '/"\xff\r\n'
    assert (lines[0]["seconds"], lines[0]["gpu"], lines[0]["request_id"]) == (0.5, "1", "i")


def test_jobs_are_told_by_state_with_their_times(caplog):
    """How long it waited and ran, where, whose; a failure is a warning."""
    job = new("a1", 1, 100.0, gpu=1, client_id="tab", owner="anna")
    running = job.moved(State.RUNNING, 104.0)
    with caplog.at_level(logging.INFO, "gateway.jobs.log"):
        tell(job)
        tell(running)
        tell(running.moved(State.SUCCEEDED, 110.5))
        tell(running.moved(State.FAILED, 106.0, error={"type": "oom"}))
        tell(job.moved(State.CANCELED, 101.0))
    assert caplog.messages == [
        "job a1 queued gpu=1",
        "job a1 running gpu=1 waited=4.00",
        "job a1 succeeded gpu=1 waited=4.00 ran=6.50",
        "job a1 failed gpu=1 waited=4.00 ran=2.00 error=oom",
        "job a1 canceled gpu=1 waited=1.00",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "INFO", "WARNING", "INFO"]
    fields = json.loads(JsonLines().format(caplog.records[2]))
    assert (fields["prompt_id"], fields["ran_seconds"], fields["owner"], fields["gpu"]) == ("a1", 6.5, "anna", 1)
