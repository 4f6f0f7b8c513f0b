"""A plain ComfyUI client for the proofs: submits, listens, fetches. Says nothing about what is right.

A ``Lane`` is where one GPU is reached: a gateway port, or the backend itself with the GPU header, or plain ComfyUI. The
proofs run against any of them unchanged.
"""

import hashlib
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import websocket

Prompt = dict[str, Any]
JOB_LIMIT = 240.0
"""Seconds a proof waits for one job; a loaded machine is slow, not broken."""

ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Lane:
    """Where one GPU is reached, and under which number."""

    host: str
    gpu: int = 0
    headers: dict[str, str] = field(default_factory=dict, hash=False)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request; answers of 400 and above are answers too."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.host}{path}", data, {**self.headers, **(headers or {})}, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=JOB_LIMIT) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())

    def get(self, path: str) -> Any:
        """The JSON of a GET that succeeds."""
        answer = self.call("GET", path)
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.body[:300]!r}"
        return answer.json

    def post(self, path: str, body: Any = None) -> Answer:
        return self.call("POST", path, {} if body is None else body)

    def submit(self, prompt: Prompt, client: str = "", **more: Any) -> str:
        """Queue a job; answers with its id."""
        body = {"prompt": prompt, **({"client_id": client} if client else {}), **more}
        answer = self.post("/prompt", body)
        assert answer.status == 200, f"POST /prompt: {answer.status} {answer.body[:600]!r}"
        assert not answer.json["node_errors"], answer.json["node_errors"]
        return cast("str", answer.json["prompt_id"])

    def history(self, job: str) -> dict[str, Any]:
        """The job's entry in history; empty while it has none."""
        return cast("dict[str, Any]", self.get(f"/history/{job}").get(job, {}))

    def finished(self, job: str, seconds: float = JOB_LIMIT) -> dict[str, Any]:
        """Wait for the job's entry in history."""
        deadline, pause = time.monotonic() + seconds, 0.02
        while not (entry := self.history(job)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} on GPU {self.gpu} has no history after {seconds:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.3, 0.3)
        return entry

    def interrupt(self, job: str = "") -> None:
        assert self.post("/interrupt", {"prompt_id": job} if job else {}).status == 200

    def running(self) -> list[str]:
        """Ids of what this GPU runs."""
        return [item[1] for item in self.get("/queue")["queue_running"]]

    def picture(self, image: dict[str, str]) -> bytes:
        """The bytes of one saved image."""
        answer = self.call("GET", "/view?" + urllib.parse.urlencode(image))
        assert answer.status == 200, f"{image}: {answer.status}"
        return answer.body

    def pictures(self, entry: dict[str, Any]) -> list[str]:
        """SHA-256 of every picture or latent of a finished job, in the order of its outputs."""
        nodes = sorted(entry["outputs"].items())
        images = [image for _, output in nodes for image in (*output.get("images", []), *output.get("latents", []))]
        return [hashlib.sha256(self.picture(image)).hexdigest() for image in images]


def outcome(entry: dict[str, Any]) -> str:
    """``success``, ``interrupted`` or ``error`` of a finished job."""
    kinds = [message[0] for message in entry["status"]["messages"]]
    if entry["status"]["completed"] and "execution_success" in kinds:
        return "success"
    return "interrupted" if "execution_interrupted" in kinds else "error"


def why(entry: dict[str, Any]) -> str:
    """The error of a finished job in one line."""
    errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    return "; ".join(f"{error['exception_type']}: {error['exception_message']}"[:300] for error in errors)


@dataclass(frozen=True)
class Event:
    """One message of a socket: its type and data, or its bytes."""

    kind: str
    data: dict[str, Any]
    raw: bytes = b""


class Listener:
    """One WebSocket that keeps everything it gets; use as a context."""

    def __init__(self, lane: Lane, client: str = "", features: dict[str, Any] | None = None) -> None:
        self.lane, self.client = lane, client or uuid.uuid4().hex
        self.events: list[Event] = []
        self._news = threading.Condition()
        self._open = True
        self._socket = websocket.create_connection(
            f"ws://{lane.host}/ws?clientId={self.client}", timeout=JOB_LIMIT,
            header=[f"{name}: {value}" for name, value in lane.headers.items()])
        if features is not None:
            self._socket.send(json.dumps({"type": "feature_flags", "data": features}))
        self._thread = threading.Thread(target=self._read, name=f"listener-{self.client}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Listener":
        self.wait(lambda event: event.kind == "status")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            while True:
                opcode, message = self._socket.recv_data(control_frame=True)
                if opcode == websocket.ABNF.OPCODE_PING:  # answered already
                    continue
                event = told(opcode, message)
                with self._news:
                    self.events.append(event)
                    self._news.notify_all()
        except (websocket.WebSocketException, OSError, ValueError):
            with self._news:
                self._open = False
                self._news.notify_all()

    def wait(self, wanted: Callable[[Event], bool], seconds: float = JOB_LIMIT, since: int = 0) -> Event:
        """The first event from number ``since`` on that is wanted."""
        deadline = time.monotonic() + seconds
        with self._news:
            seen = since
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                if not self._open:
                    raise ConnectionError(f"the socket of {self.client} is closed")
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    raise TimeoutError(f"{self.client} waited {seconds:.0f} s; it got {self.summary()}")

    def ended(self, job: str, seconds: float = JOB_LIMIT) -> Event:
        """Wait for the event that ends ``job``."""
        return self.wait(lambda event: event.kind in ENDS and event.data.get("prompt_id") == job, seconds)

    def idle_after(self, job: str, seconds: float = JOB_LIMIT) -> Event:
        """Wait for the last event of a job: ``executing`` without a node."""
        return self.wait(lambda event: event.kind == "executing" and event.data.get("prompt_id") == job
                         and event.data.get("node") is None, seconds)

    def ping(self, seconds: float = JOB_LIMIT) -> None:
        """Wait for the answer to a Ping of ours."""
        payload = uuid.uuid4().bytes
        try:
            self._socket.ping(payload)
        except websocket.WebSocketConnectionClosedException as error:
            raise ConnectionError(f"the socket of {self.client} is closed") from error
        self.wait(lambda event: event.kind == "pong" and event.raw == payload, seconds)

    def of(self, kind: str, job: str = "") -> list[Event]:
        """All events of one kind, of one job if given."""
        with self._news:
            return [event for event in self.events
                    if event.kind == kind and (not job or event.data.get("prompt_id") == job)]

    def jobs(self) -> set[str]:
        """Every job that any event names."""
        with self._news:
            return {event.data["prompt_id"] for event in self.events if event.data.get("prompt_id")}

    def summary(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for event in self.events:
            counts[event.kind] = counts.get(event.kind, 0) + 1
        return counts

    def close(self) -> None:
        self._socket.close()
        self._socket.shutdown()  # where the other side was first, close() leaves the descriptor
        self._thread.join(10)


def told(opcode: int, message: bytes) -> Event:
    """One frame as an event; raises where it ends the socket."""
    if opcode == websocket.ABNF.OPCODE_PONG:
        return Event("pong", {}, message)
    if opcode == websocket.ABNF.OPCODE_CLOSE:
        raise websocket.WebSocketConnectionClosedException
    return binary(message) if opcode == websocket.ABNF.OPCODE_BINARY else spoken(message.decode())


def spoken(message: str) -> Event:
    """A text message as an event."""
    parsed = json.loads(message)
    return Event(parsed["type"], parsed.get("data") or {})


def binary(message: bytes) -> Event:
    """A binary message as an event; previews with metadata name their job."""
    number = int.from_bytes(message[:4], "big")
    kind = {1: "preview", 3: "text", 4: "preview_with_metadata"}.get(number, f"binary_{number}")
    if number == 4:
        length = int.from_bytes(message[4:8], "big")
        return Event(kind, json.loads(message[8 : 8 + length]), message)
    return Event(kind, {}, message)


def metrics(lane: Lane, path: str = "/metrics") -> dict[str, float]:
    """The backend's metrics by sample name with labels."""
    answer = lane.call("GET", path)
    found = {}
    for line in answer.body.decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found
