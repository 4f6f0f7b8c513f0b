"""The proxy that most people would write: aiohttp's server in front of aiohttp's client, everything streamed.

``python -m bench.naive PORT BACKEND_URL``. It has neither limits nor a log nor forwarding headers beyond one.
"""

import asyncio
import sys

import aiohttp
from aiohttp import web

_DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "host"}


async def relay(source: web.WebSocketResponse, sink: aiohttp.ClientWebSocketResponse) -> None:
    """One direction of a bridge; the other's type differs, its methods do not."""
    async for message in source:
        if message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)


async def events(request: web.Request, url: str, session: aiohttp.ClientSession) -> web.StreamResponse:
    """Two sockets joined message by message."""
    client = web.WebSocketResponse(max_msg_size=0)
    await client.prepare(request)
    async with session.ws_connect(url, max_msg_size=0) as backend, asyncio.TaskGroup() as tasks:
        up = tasks.create_task(relay(client, backend), name="up")
        down = tasks.create_task(relay(backend, client), name="down")  # type: ignore[arg-type]
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        down.cancel()
    return client


async def forward(request: web.Request) -> web.StreamResponse:
    """Everything else."""
    session: aiohttp.ClientSession = request.app["session"]
    url = request.app["backend"] + request.raw_path
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await events(request, url, session)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED}
    headers |= {"X-TARGET-GPU": "0", "X-Forwarded-For": request.remote or ""}
    data = request.content if request.can_read_body else None
    async with session.request(request.method, url, headers=headers, data=data, allow_redirects=False) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _DROPPED}
        made = web.StreamResponse(status=answer.status, headers=kept)
        made.content_length = answer.content_length
        await made.prepare(request)
        async for part in answer.content.iter_any():
            await made.write(part)
        await made.write_eof()
        return made


async def start_session(app: web.Application) -> None:
    app["session"] = aiohttp.ClientSession(auto_decompress=False)


def main() -> None:
    """Serve until ended."""
    app = web.Application(client_max_size=0)
    app["backend"] = sys.argv[2]
    app.on_startup.append(start_session)
    app.router.add_route("*", "/{tail:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
