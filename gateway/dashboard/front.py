"""The dashboard put together: its parts and its routes.

Owns the list of routes. Must never answer anything itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.api.front import Api
from gateway.api.rerun import RerunRoute
from gateway.api.route import Route
from gateway.dashboard import files
from gateway.dashboard.actions import ActionRoutes
from gateway.dashboard.board import Board
from gateway.dashboard.cards import Cards
from gateway.dashboard.meter import Meter
from gateway.dashboard.stream import StreamRoute
from gateway.fleet.ask import Ask
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.observe.metrics import Metrics
from gateway.observe.tail import Tail
from gateway.request import Kind


def add_dashboard(
    api: Api,
    desk: Desk,
    fleet: Fleet,
    metrics: Metrics,
    asks: Sequence[Ask],
    tails: Sequence[Tail],
    reload: Callable[[], dict[str, Any]],
) -> None:
    """Have the API answer for the dashboard. ``asks`` and ``tails``: how each backend is asked, and its last lines.

    ``reload`` reads the settings again and says what that came to.
    """
    meter = Meter(fleet.members, asks, Cards())
    board = Board(fleet, desk, metrics, meter, api.show)
    stream = StreamRoute(board, meter, tails, lambda: api.watch.leaving)
    again = RerunRoute(desk.journal, api.desks, api.known, api.show)
    its = ActionRoutes(fleet, desk.peers, desk.pauses, tails, reload)
    api.add(routes(stream, its, again), meter.run)


def routes(stream: StreamRoute, its: ActionRoutes, again: RerunRoute) -> list[Route]:
    """The page's own, and below ``/admin`` what needs that scope."""
    gpu = {200: "GpuState", 404: "Error"}
    away = {502: "Error", 503: "Error", 504: "Error"}
    control = Kind.CONTROL
    line = {200: "LineState", 404: "Error"}
    return [
        Route("GET", "/dashboard", files.page, "The dashboard.", {200: "text/html", 304: ""}),
        Route("GET", "/dashboard/events", stream.events, "Everything that the dashboard shows, as it changes.", {
            200: "text/event-stream",
        }),
        Route("GET", "/dashboard/{file}", files.file, "A file of the page.", {200: "*/*", 304: "", 404: "Error"}),
        Route("POST", "/jobs/{id}/rerun", again.rerun, "Submit a job's workflow once more, as a new job.", {
            202: "Job", 404: "Error", 400: "Error", 429: "Error", **away,
        }, kind=Kind.SUBMIT),
        Route("GET", "/admin/line", its.line, "Whether the front door's line goes on.", line),
        Route("POST", "/admin/line/pause", its.pause_line, "Send no waiting job of the front door to a GPU.", line,
              kind=control),
        Route("POST", "/admin/line/resume", its.resume_line, "Send them again.", line, kind=control),
        Route("POST", "/admin/gpus/{gpu}/drain", its.drain, "Give a GPU no new jobs of the front door.", gpu,
              kind=control),
        Route("POST", "/admin/gpus/{gpu}/resume", its.resume, "Give it jobs again.", gpu, kind=control),
        Route("POST", "/admin/gpus/{gpu}/free", its.free, "Have a GPU let go of models and cached outputs.", {
            **gpu, **away
        }, kind=control),
        Route("POST", "/admin/reload", its.reload, "Read the settings again, as SIGHUP does.", {
            200: "Reload", 400: "Error",
        }, kind=control),
        Route("GET", "/admin/backends/{backend}/log", its.log, "The last lines that a backend wrote.", {
            200: "LogLines", 400: "Error", 404: "Error",
        }, query={
            "after": {"type": "integer", "minimum": 0, "description": "Only lines behind this number."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 500},
        }),
    ]  # fmt: skip
