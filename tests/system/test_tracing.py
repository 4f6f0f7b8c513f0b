"""Traces as a collector gets them: OTLP over HTTP, from a running product."""

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import pick_ports
from tests.doubles.product import GENEROUS, Product
from tests.doubles.prompts import sleeping
from tests.doubles.wait import wait_until

pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry's SDK: pip install 'comfy-gateway[otel]'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_collector_gets_a_job_from_accept_to_node(make: Callable[..., Product]):
    """Under the client's trace: request, job, queue, lane and a span for the node that takes its time."""
    spans: dict[str, Any] = {}
    services: set[str] = set()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in body.resource_spans:
                services.update(each.value.string_value for each in resource.resource.attributes)
                for scope in resource.scope_spans:
                    spans.update({span.name: span for span in scope.spans if span.trace_id.hex() == TRACE})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (port,) = pick_ports(1)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        product = make(gpus=1, settings=f"{GENEROUS}[tracing]\nenabled = true\n", env=env).start().ready()
        body = json.dumps({"workflow": sleeping(0.5)}).encode()
        lines = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = product.ask(product.ports[0], "/jobs?wait=60", method="POST", body=body, headers=lines)
        assert answer.json()["state"] == "succeeded"
        wanted = {"request", "job", "queue", "lane", "node TestSleep"}
        wait_until(lambda: wanted <= set(spans), 60, f"{wanted}")
        assert product.stop() == 0
        assert "Traceback" not in product.log()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert "comfy-gateway" in services
    order = [spans[name] for name in ("request", "job", "lane", "node TestSleep")]
    assert [span.parent_span_id for span in order[1:]] == [span.span_id for span in order[:-1]]
    assert order[0].parent_span_id.hex() == "b7ad6b7169203331"
    slept = spans["node TestSleep"]
    assert slept.end_time_unix_nano > slept.start_time_unix_nano
