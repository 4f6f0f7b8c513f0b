"""The naive way to four GPUs, as a control: four queues, four workers, a header that picks the queue, nothing else.

usage: PYTHON_OF_COMFYUI naive.py --comfyui DIR --lanes N -- COMFYUI_ARGUMENTS

Applied at run time, for tests only. It is what anyone would do first: give each worker thread its own queue and its own
executor, and look for a job to interrupt in all queues. Every scenario of the proofs must find a problem here.
"""

import json
import os
import sys
import threading
from contextvars import ContextVar
from typing import Any

ROUTED = ("/prompt", "/queue")
GPU: ContextVar[int] = ContextVar("gpu", default=0)


def main() -> None:
    folder, lanes = sys.argv[sys.argv.index("--comfyui") + 1], int(sys.argv[sys.argv.index("--lanes") + 1])
    arguments = sys.argv[sys.argv.index("--") + 1 :]
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv = ["main.py", *arguments]
    import comfy.options  # noqa: PLC0415 (findable only now)

    comfy.options.enable_args_parsing()
    import main as comfyui  # noqa: PLC0415

    loop, server, start_all = comfyui.start_comfyui()
    multiply(comfyui, server, lanes)
    loop.run_until_complete(start_all())


def multiply(comfyui: Any, server: Any, lanes: int) -> None:
    """Add queues and workers, and route by header."""
    import execution  # noqa: PLC0415

    queues = [server.prompt_queue, *(execution.PromptQueue(server) for _ in range(lanes - 1))]
    kind = type(server)
    kind.prompt_queue = property(lambda _: queues[GPU.get()], lambda *_: None)
    for queue in queues[1:]:
        threading.Thread(target=comfyui.prompt_worker, daemon=True, args=(queue, server)).start()
    server.app.middlewares.insert(0, router(queues))


def router(queues: list[Any]) -> Any:
    """Submissions and queue reads by header; an interrupt and history look in every queue; ``/free`` is told to all.

    History is merged so that a scenario must find its own fault here, and not only that it cannot see the result.
    """
    import nodes  # noqa: PLC0415
    from aiohttp import web  # noqa: PLC0415

    @web.middleware
    async def route(request: Any, handler: Any) -> Any:
        path = request.path.removeprefix("/api")
        GPU.set(int(request.headers.get("X-TARGET-GPU", "0")) if path in ROUTED else 0)
        if path == "/interrupt" and request.method == "POST":
            text = await request.text()
            job = json.loads(text or "{}").get("prompt_id")
            running = [item[1] for queue in queues for item in queue.get_current_queue()[0]]
            if job is None or job in running:
                nodes.interrupt_processing()
            return web.Response(status=200)
        if path == "/free" and request.method == "POST":
            for queue in queues:
                for flag, value in (await request.json()).items():
                    queue.set_flag(flag, value)
            return web.Response(status=200)
        if path.startswith("/history") and request.method == "GET":
            job = path.removeprefix("/history").strip("/") or None
            found = {key: value for queue in queues for key, value in queue.get_history(prompt_id=job).items()}
            return web.json_response(found)
        return await handler(request)

    return route


if __name__ == "__main__":
    main()
