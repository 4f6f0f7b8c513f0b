"""A static origin for where nginx is missing: ``python -m bench.origin PORT FOLDER``."""

import asyncio
import sys
from pathlib import Path


class Static(asyncio.Protocol):
    """Answers each request with the file of its path; reads bodies with a length and forgets them."""

    files: dict[bytes, bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n") + 4) >= 4:
            head = self.data[:end].lower()
            _, found, rest = head.partition(b"\r\ncontent-length: ")
            length = int(rest.split(b"\r\n", 1)[0]) if found else 0
            if len(self.data) < end + length:
                return
            self.data = self.data[end + length :]
            body = self.files.get(head.split(b" ", 2)[1], b"ok")
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def serve(port: int) -> None:
    """Run until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Static, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    Static.files = {b"/" + file.name.encode(): file.read_bytes() for file in Path(sys.argv[2]).iterdir()}
    asyncio.run(serve(int(sys.argv[1])))
