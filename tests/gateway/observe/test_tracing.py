"""Spans of requests and jobs: what they are called, whose parent is whose, and that nothing is loaded without them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config
from gateway.opening import StartError, tracing_of
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack
from tests.doubles.jobs_house import house
from tests.doubles.wait import until

pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry's SDK: pip install 'comfy-gateway[otel]'")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.jobs.live import Step
from gateway.jobs.traced import TracedJobs
from gateway.observe.tracing import Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Kept:
    """A tracing whose spans can be looked at."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    def spans(self) -> dict[str, Any]:
        """By name; the last of each."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


def parent(span: Any) -> str:
    return f"{span.parent.span_id:016x}" if span.parent is not None else ""


def own(span: Any) -> str:
    return f"{span.context.span_id:016x}"


async def test_a_request_is_a_part_of_its_clients_trace_and_the_backends_is_a_part_of_it():
    """The client's ``traceparent`` is taken in, ours is passed on in its place, and the rest of the lines stays."""
    kept = Kept()
    async with stack() as made, made.client() as client:
        made.proxy.tracing = kept.tracing
        lines = (f"TraceParent: {PARENT}", "tracestate: a=b", "X-Mine: 1")
        assert (await client.get("/queue?secret=1", *lines)).status == 200
        (seen,) = made.backend.seen
        await until(kept.spans)
        span = kept.spans()["request"]
        assert seen.all("traceparent") == [f"00-{TRACE}-{own(span)}-01".encode()]
        assert (seen.all("tracestate"), seen.all("x-mine")) == ([b"a=b"], [b"1"])
        assert (f"{span.context.trace_id:032x}", parent(span)) == (TRACE, "b7ad6b7169203331")
        told = span.attributes
        assert (told["url.path"], told["http.request.method"]) == ("/queue", "GET")
        assert (told["http.response.status_code"], told["comfy.gpu"]) == (200, "0")
        assert (await client.get("/queue", "traceparent: nonsense")).status == 200
        begun = made.backend.seen[1].all("traceparent")[0].decode()
        assert begun.split("-")[1] not in {TRACE, "0" * 32}


async def test_without_tracing_what_a_client_sends_is_passed_on():
    """As any other line."""
    async with stack() as made, made.client() as client:
        await client.send(request("/queue", f"traceparent: {PARENT}"))
        assert (await client.answer()).status == 200
        assert made.backend.seen[0].all("traceparent") == [PARENT.encode()]


async def test_a_job_is_a_tree_from_accept_to_node(tmp_path: Path):
    """Request, job, time in line, time on the lane, nodes: with the journal's own times, under one trace."""
    kept = Kept()
    async with house(tmp_path) as here:
        here.server.trace(kept.tracing)
        traced = TracedJobs(kept.tracing, here.desk.journal, here.desk.live)
        value = {"prompt": {"1": {}}, "prompt_id": "a1", "client_id": "c"}
        assert (await here.post("/prompt", value, f"traceparent: {PARENT}")).status == 200
        sent = next(seen for seen in here.backend.seen if seen.target == b"/prompt" and seen.method == b"POST")
        here.comfy.start()
        await until(lambda: here.record("a1").state.value == "running")
        began = here.record("a1").at
        here.desk.live.on_step("a1", Step("3", "KSampler", began + 1.0, began + 2.0))
        here.comfy.finish("a1", "error", "execution_error", exception_message="out of paint", exception_type="X")
        await until(lambda: here.record("a1").ended)
        traced.close()
    spans = kept.spans()
    assert set(spans) == {"request", "job", "queue", "lane", "node KSampler"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    chain = [spans[name] for name in ("request", "job", "lane", "node KSampler")]
    assert [parent(span) for span in chain] == ["b7ad6b7169203331", *[own(span) for span in chain[:-1]]]
    assert parent(spans["queue"]) == own(spans["job"])
    assert sent.all("traceparent") == [f"00-{TRACE}-{own(spans['request'])}-01".encode()]
    assert spans["queue"].end_time == spans["lane"].start_time == round(began * 1e9)
    node = spans["node KSampler"]
    assert node.end_time - node.start_time == pytest.approx(1e9, abs=1e6)
    assert spans["lane"].attributes["comfy.prompt_id"] == "a1"
    assert (spans["lane"].attributes["comfy.state"], spans["lane"].attributes["comfy.gpu"]) == ("failed", 0)
    assert spans["job"].status.description == "out of paint"


def test_nothing_is_loaded_without_it():
    """Neither the SDK nor its interface: a gateway that traces nothing starts as before."""
    code = "import sys, gateway.app; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"
    assert tracing_of(Config()) is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    """One line with the way out."""
    config = replace(Config(), tracing=replace(Config().tracing, enabled=True))
    monkeypatch.setitem(sys.modules, "gateway.observe.tracing", None)
    with pytest.raises(StartError, match=r"pip install 'comfy-gateway\[otel\]'"):
        tracing_of(config)
