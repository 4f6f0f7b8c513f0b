"""``[tracing]`` of the configuration; ``config.py`` has all other tables, and says what they are for.

Pure.
"""

from dataclasses import dataclass

from gateway.spec import Flag


@dataclass(frozen=True)
class Tracing:
    """``[tracing]``: OpenTelemetry traces of requests and jobs; where to is told by OTEL_EXPORTER_OTLP_ENDPOINT."""

    enabled: Flag = False
    """true needs `pip install comfy-gateway[otel]`; false: nothing of it is loaded."""
