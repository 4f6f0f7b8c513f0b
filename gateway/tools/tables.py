"""What the commands print: tables and bars, made from what the gateway tells.

Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_BAR: Final = 30


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def status_rows(status: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per GPU: whether it takes jobs, how many it has, and what it is at."""
    jobs = {job["gpu"]: job for job in running}
    rows = [["GPU", "STATE", "RUNNING", "WAITING", "JOB", "PROGRESS"]]
    for told in sorted(status["data"]["instances"].values(), key=lambda told: told["gpu_id"]):
        gpu, job = told["gpu_id"], jobs.get(told["gpu_id"])
        state = "ready" if told["healthy"] else told["last_error"] or "down"
        state = "draining" if told["healthy"] and told.get("draining") else state
        name = job["id"] if job else "-"
        rows.append([str(gpu), state, str(told["running"]), str(told["pending"]), name, progress(job)])
    return rows


def job_rows(jobs: Sequence[Mapping[str, Any]], now: float) -> list[list[str]]:
    """One row per job, as the gateway lists them."""
    rows = [["ID", "STATE", "GPU", "AGE", "RAN", "CLIENT"]]
    for job in jobs:
        gpu = "-" if job["gpu"] is None else str(job["gpu"])
        began, over = job["started_at"], job["ended_at"]
        ran = seconds((over or now) - began) if began else "-"
        rows.append([job["id"], job["state"], gpu, seconds(now - job["created_at"]), ran, job["client_id"] or "-"])
    return rows


def progress(job: Mapping[str, Any] | None) -> str:
    """How far a job is, in a few words."""
    told = job.get("progress") if job else None
    if not told:
        return "-"
    nodes = f"{told['nodes_done']}/{told['nodes_total']} nodes" if told.get("nodes_total") else ""
    steps = f"step {told['value']:g}/{told['max']:g}" if told.get("max") else ""
    return ", ".join(filter(None, [nodes, steps])) or "-"


def bar(told: Mapping[str, Any]) -> str:
    """A bar for the node at work, and which node of how many that is."""
    share = told["value"] / told["max"] if told.get("max") else 0.0
    full = round(share * _BAR)
    nodes = f"  node {told['node']}" if told.get("node") else ""
    return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}  {progress({'progress': told})}{nodes}"


def seconds(duration: float) -> str:
    """``4.2 s``, ``3 min``, ``5 h``, ``2 d``."""
    if duration < 60:
        return f"{max(0.0, duration):.1f} s"
    for unit, size in (("min", 60), ("h", 3600)):
        if duration < size * (60 if unit == "min" else 48):
            return f"{duration / size:.0f} {unit}"
    return f"{duration / 86_400:.0f} d"
