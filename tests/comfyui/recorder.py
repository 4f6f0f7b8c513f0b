"""Stands between a client and a port and keeps what the port says: tells whether an event was sent or was not heard."""

import contextlib
import re
import socket
import threading
from types import TracebackType

_EXTENSIONS = re.compile(rb"\r\nsec-websocket-extensions:[^\r]*", re.IGNORECASE)


class Recorder:
    """Relays connections to ``HOST:PORT``, without compression of WebSockets; use as a context."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._door = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._said: list[bytearray] = []
        self.host = f"127.0.0.1:{self._door.getsockname()[1]}"

    def __enter__(self) -> "Recorder":
        threading.Thread(target=self._accept, name="recorder", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        for each in (self._door, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def events(self, kind: str) -> int:
        """How many events of this kind the port has sent, on all connections."""
        # A server's frames are not masked, and without compression their text stands as it is.
        return sum(bytes(said).count(b'{"type": "%b",' % kind.encode()) for said in self._said)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(self._target)
                said = bytearray()
                self._sockets += [client, server]
                self._said.append(said)
                for pump, parts in ((self._ask, (client, server)), (self._answer, (server, client, said))):
                    threading.Thread(target=pump, args=parts, name="recorder", daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(_EXTENSIONS.sub(b"", data))
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, said: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                said += data
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
