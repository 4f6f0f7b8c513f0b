"""The web server: routes that look their queue and client up on one object."""

import asyncio
import uuid

import execution
import nodes
from aiohttp import web


class PromptServer:
    def __init__(self, loop):  # noqa: C901 (all routes stand in it, as in ComfyUI)
        PromptServer.instance = self
        self.prompt_queue = execution.PromptQueue(self)
        self.loop = loop
        self.messages = asyncio.Queue()
        self.number = 0
        self.app = web.Application()
        self.sockets = {}
        self.sockets_metadata = {}
        self.last_node_id = None
        self.client_id = None
        self.routes = routes = web.RouteTableDef()

        @routes.get("/ws")
        async def events(request):
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            sid = request.query.get("clientId") or uuid.uuid4().hex
            self.sockets.pop(sid, None)
            self.sockets[sid] = ws
            self.sockets_metadata[sid] = {"feature_flags": {}}
            try:
                await self.send("status", {"status": self.get_queue_info(), "sid": sid}, sid)
                if self.client_id == sid and self.last_node_id is not None:
                    await self.send("executing", {"node": self.last_node_id}, sid)
                async for _ in ws:
                    pass
            finally:
                self.sockets.pop(sid, None)
                self.sockets_metadata.pop(sid, None)
            return ws

        @routes.get("/queue")
        async def get_queue(request):
            running, pending = self.prompt_queue.get_current_queue_volatile()
            return web.json_response({"queue_running": running, "queue_pending": pending})

        @routes.get("/prompt")
        async def get_prompt(request):
            return web.json_response(self.get_queue_info())

        @routes.post("/prompt")
        async def post_prompt(request):
            body = await request.json()
            prompt_id = body.get("prompt_id") or str(uuid.uuid4())
            fine, error, outputs, wrong = await execution.validate_prompt(prompt_id, body["prompt"], None)
            if not fine:
                return web.json_response({"error": error, "node_errors": wrong}, status=400)
            number, self.number = self.number, self.number + 1
            extra = body.get("extra_data", {})
            if "client_id" in body:
                extra["client_id"] = body["client_id"]
            self.prompt_queue.put((number, prompt_id, body["prompt"], extra, outputs))
            return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": {}})

        @routes.post("/queue")
        async def post_queue(request):
            body = await request.json()
            if body.get("clear"):
                self.prompt_queue.wipe_queue()
            for gone in body.get("delete", ()):
                self.prompt_queue.delete_queue_item(lambda item, gone=gone: item[1] == gone)
            return web.Response()

        @routes.get("/history")
        async def get_history(request):
            return web.json_response(self.prompt_queue.get_history())

        @routes.get("/history/{prompt_id}")
        async def get_one(request):
            return web.json_response(self.prompt_queue.get_history(prompt_id=request.match_info["prompt_id"]))

        @routes.post("/history")
        async def post_history(request):
            body = await request.json()
            if body.get("clear"):
                self.prompt_queue.wipe_history()
            for gone in body.get("delete", ()):
                self.prompt_queue.delete_history_item(gone)
            return web.Response()

        @routes.post("/interrupt")
        async def post_interrupt(request):
            nodes.interrupt_processing()
            return web.Response()

        @routes.post("/free")
        async def post_free(request):
            for name, value in (await request.json()).items():
                self.prompt_queue.set_flag(name, value)
            return web.Response()

        @routes.get("/system_stats")
        async def system_stats(request):
            return web.json_response({"system": {}, "devices": [{"name": "cpu"}, {"name": "another"}]})

    async def setup(self):
        return None

    def add_routes(self):
        api = [web.RouteDef(one.method, "/api" + one.path, one.handler, one.kwargs) for one in self.routes]
        self.app.add_routes([*api, *self.routes])

    def get_queue_info(self):
        return {"exec_info": {"queue_remaining": self.prompt_queue.get_tasks_remaining()}}

    async def send(self, event, data, sid=None):
        if isinstance(data, bytes):
            await self.send_bytes(event, data, sid)
        else:
            await self.send_json(event, data, sid)

    async def send_bytes(self, event, data, sid=None):
        message = int(event).to_bytes(4, "big") + data
        for ws in list(self.sockets.values()) if sid is None else [self.sockets[sid]] if sid in self.sockets else []:
            await ws.send_bytes(message)

    async def send_json(self, event, data, sid=None):
        message = {"type": event, "data": data}
        for ws in list(self.sockets.values()) if sid is None else [self.sockets[sid]] if sid in self.sockets else []:
            await ws.send_json(message)

    def send_sync(self, event, data, sid=None):
        self.loop.call_soon_threadsafe(self.messages.put_nowait, (event, data, sid))

    def queue_updated(self):
        self.send_sync("status", {"status": self.get_queue_info()})

    async def publish_loop(self):
        while True:
            await self.send(*await self.messages.get())

    async def start_multi_address(self, addresses, call_on_start=None, verbose=True):
        runner = web.AppRunner(self.app)
        await runner.setup()
        for host, port in addresses:
            await web.TCPSite(runner, host, port).start()
