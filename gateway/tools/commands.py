"""``status``, ``submit``, ``jobs``, ``cancel``, ``reload``: what they ask the gateway and what they print.

Owns the commands' words and exit codes. Results go to stdout, everything else to stderr.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from gateway.tools.door import Door, ToolError, told
from gateway.tools.tables import bar, job_rows, status_rows, table

EXIT_JOB_FAILED: Final = 4
EXIT_JOB_CANCELED: Final = 5
_KEPT: Final = 500
"""Lines that the gateway keeps of each backend."""
_PACE: Final = 1.0
"""Seconds between two looks for new lines."""


def status(door: Door, *, as_json: bool, watch: float) -> int:
    """How every GPU is; with ``watch`` again and again, that many seconds apart."""
    while True:
        health, queues = door.ask("GET", "/health").json(), door.get("/status")
        running = door.get("/jobs?state=running&limit=200")["jobs"]
        if as_json:
            print(json.dumps({"health": health, "status": queues["data"], "running": running}))
        else:
            head = f"{health['status']}  backend {health['backend']}  {time.strftime('%H:%M:%S')}"
            lines = [head, *table(status_rows(queues, running))]
            lines += [said for said in (health.get("reason"), health.get("mode"), issuing(door)) if said]
            print("\x1b[2J\x1b[H" * bool(watch) + "\n".join(lines), flush=True)
        if not watch:
            return 0 if health["status"] == "healthy" else 1
        time.sleep(watch)


def issuing(door: Door) -> str:
    """What the backend says of Python's lock when it holds the GPUs up; else nothing."""
    reply = door.ask("GET", "/debug/queues")
    told = reply.json().get("issuing") if reply.status == 200 else None
    held_up = isinstance(told, dict) and told.get("verdict") in {"close", "gil-bound"}
    return f"{told['verdict']}: {told['advice']}" if held_up and told else ""


def jobs(door: Door, *, state: str, limit: int, as_json: bool) -> int:
    """The jobs that the gateway remembers, the youngest first."""
    found = door.get(f"/jobs?limit={limit}" + (f"&state={quote(state)}" if state else ""))["jobs"]
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(table(job_rows(found, time.time()))))
    return 0


def cancel(door: Door, ids: list[str]) -> int:
    """Cancel jobs wherever they are."""
    code = 0
    for job in ids:
        reply = door.ask("DELETE", f"/jobs/{quote(job, safe='')}")
        if reply.status in {200, 202}:
            print(f"{job} {reply.json()['state'] if reply.status == 200 else 'is being canceled'}")
        else:
            print(f"comfy-gateway: {job}: {told(reply)}", file=sys.stderr)
            code = 1
    return code


def drain(door: Door, gpu: int, what: str) -> int:
    """``drain`` or ``resume`` a GPU, and say how it stands then."""
    reply = door.ask("POST", f"/admin/gpus/{gpu}/{what}")
    if reply.status != 200:
        raise ToolError(told(reply))
    found = reply.json()
    print(f"GPU {gpu} {found['state']}" + (f": {found['reason']}" if found["reason"] else ""))
    return 0


def reload(door: Door) -> int:
    """Have the gateway read its settings again, and say what that has changed."""
    reply = door.ask("POST", "/admin/reload")
    if reply.status == 404:
        raise ToolError("a gateway without [jobs] journal cannot be asked to reload; send its process SIGHUP")
    if reply.status != 200:
        raise ToolError(told(reply))
    found = reply.json()
    for warning in found["warnings"]:
        print(f"comfy-gateway: {warning}", file=sys.stderr)
    if found["waiting"]:
        print(f"changed, but only read at the start: {', '.join(found['waiting'])}")
    print(f"reloaded: {', '.join(found['applied']) or 'the settings stay as they are'}")
    return 0


def logs(door: Door, backend: int, *, lines: int, follow: bool) -> int:
    """A backend's last lines; with ``follow`` also those that come, until it is stopped."""
    query = f"limit={min(lines, _KEPT)}"
    while True:
        found = door.get(f"/admin/backends/{backend}/log?{query}")
        for line in found["lines"]:
            print(line["text"])
        if not follow:
            return 0
        sys.stdout.flush()
        query = f"after={found['newest']}"
        time.sleep(_PACE)


def submit(door: Door, file: Path, *, gpu: int | None, wait: bool, folder: Path | None) -> int:
    """Submit a workflow; with ``wait`` show how far it is, with ``folder`` save what it made there."""
    order: dict[str, Any] = {"workflow": _workflow(file)}
    if gpu is not None:
        order["gpu"] = gpu
    if folder is not None:
        _try_writing(folder)
    reply = door.ask("POST", "/jobs", order)
    if reply.status not in {200, 202}:
        raise ToolError(_refusal(reply.body) or told(reply))
    job = reply.json()
    if not wait and folder is None:
        print(job["id"])
        return 0
    job = _follow(door, job["id"])
    if job["state"] != "succeeded":
        error = job.get("error") or {}
        reason = f": {error.get('message')}" if error.get("message") else ""
        print(f"comfy-gateway: job {job['id']} {job['state']}{reason}", file=sys.stderr)
        return EXIT_JOB_CANCELED if job["state"] == "canceled" else EXIT_JOB_FAILED
    if folder is None:
        print(job["id"])
        return 0
    return _save(door, job, folder)


def _workflow(file: Path) -> Any:
    try:
        found = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ToolError(f"{file} is no JSON: {error}") from error
    if isinstance(found, dict) and "nodes" in found and "links" in found:
        raise ToolError(f'{file} is in the editor\'s format; in ComfyUI choose "Export (API)" and send that')
    return found["prompt"] if isinstance(found, dict) and isinstance(found.get("prompt"), dict) else found


def _refusal(body: bytes) -> str:
    """What is wrong with which node, when the backend says so."""
    try:
        nodes = json.loads(body)["node_errors"]
        lines = [
            f"node {node} ({found['class_type']}): {error['message']} {error['details']}".strip()
            for node, found in nodes.items()
            for error in found["errors"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return "; ".join(lines)


def _follow(door: Door, job: str) -> Mapping[str, Any]:
    """Show a job's progress on the terminal until it has ended; a broken line is taken up again."""
    drawn = sys.stderr.isatty()
    while True:
        for name, data in door.events(f"/jobs/{quote(job, safe='')}/events"):
            if name == "end":
                print("\r\x1b[K" * drawn, end="", file=sys.stderr, flush=True)
                found: Mapping[str, Any] = data
                return found
            if drawn and name == "progress":
                print(f"\r\x1b[K{bar(data)}", end="", file=sys.stderr, flush=True)
            elif name == "state" and not drawn:
                print(f"{data['state']} on GPU {data['gpu']}", file=sys.stderr)
        time.sleep(1.0)


def _try_writing(folder: Path) -> None:
    """Make the folder and see that files can be put there, before any GPU works for them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ToolError(f"{folder} cannot be written: {error.strerror or error}; nothing was submitted") from error


def _save(door: Door, job: Mapping[str, Any], folder: Path) -> int:
    if not job["outputs"]:
        raise ToolError(f"job {job['id']} succeeded and made no file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for output in job["outputs"]:
            reply = door.ask("GET", output["url"])
            if reply.status != 200:
                raise ToolError(f"{output['filename']}: {told(reply)}")
            # A name from elsewhere names a file in this folder and nothing else.
            path = folder / Path(output["filename"]).name
            path.write_bytes(reply.body)
            print(path)
    except OSError as error:
        raise ToolError(f"{folder}: {error.strerror or error}") from error
    return 0
