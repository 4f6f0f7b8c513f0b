"""Stands in for ``python main.py`` when ComfyUI's own tests start their server: asks for one and stays until killed.

Runs as ``main.py`` in the view of the checkout that the own suite is run in, under ComfyUI's interpreter, with the
standard library alone. Must not know how a server is made: the proof that listens on ``PROOF_SOCKET`` does.
With ``PROOF_HELD`` it holds the wanted port itself and passes bytes on, as they are, to the port of the answer; where
``PROOF_PORTS`` names several, it holds these, for as many neighbouring ports from that of the answer on.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass bytes on until the source ends, then end the sink's direction."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for side in (source, sink):
            side.close()


def forward(door: socket.socket, given: int) -> None:
    """Join every connection of ``door`` with one to the given port, those that came before it was known too."""
    while True:
        client, _ = door.accept()
        server = socket.create_connection(("127.0.0.1", given))
        for both in ((client, server), (server, client)):
            threading.Thread(target=pump, args=both, daemon=True).start()


def main() -> None:
    port = int(sys.argv[sys.argv.index("--port") + 1])
    held = [int(each) for each in os.environ.get("PROOF_PORTS", str(port)).split(",")]
    # A held door lets the suite wait as long as a start takes; without one the server must be quick, and take the port.
    doors = [socket.create_server(("127.0.0.1", each)) for each in held if os.environ.get("PROOF_HELD")]
    with socket.socket(socket.AF_UNIX) as proof:
        proof.connect(os.environ["PROOF_SOCKET"])
        proof.sendall(json.dumps({"argv": sys.argv[1:], "cwd": str(Path.cwd())}).encode() + b"\n")
        given = int(proof.makefile().readline() or "0")
        for index, door in enumerate(doors if given else ()):
            threading.Thread(target=forward, args=(door, given + index), daemon=True).start()
        proof.recv(1)  # until killed, or the proof is over


if __name__ == "__main__":
    main()
