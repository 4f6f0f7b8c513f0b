"""Puts the parts together; run as a script it serves until it is told to stop."""

import comfy.options

comfy.options.enable_args_parsing()

import asyncio  # noqa: E402 (the order of a script)
import gc  # noqa: E402
import threading  # noqa: E402

import comfy.model_management  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402, F401
import server  # noqa: E402
from comfy.cli_args import args  # noqa: E402


def prompt_worker(q, server_instance):
    executor = execution.PromptExecutor(server_instance)
    while True:
        found = q.get(timeout=1000.0)
        if found is not None:
            item, number = found
            server_instance.last_prompt_id = item[1]
            executor.execute(item[2], item[1], item[3], item[4])
            status = execution.PromptQueue.ExecutionStatus(
                "success" if executor.success else "error", executor.success, executor.status_messages
            )
            q.task_done(number, executor.history_result, status)
            if server_instance.client_id is not None:
                data = {"node": None, "prompt_id": item[1]}
                server_instance.send_sync("executing", data, server_instance.client_id)
        if q.get_flags().get("unload_models"):
            comfy.model_management.unload_all_models()
            gc.collect()
            comfy.model_management.soft_empty_cache()


def hijack_progress(server_instance):
    return None


def cleanup_temp():
    return None


async def run(server_instance, address="", port=8188):
    await asyncio.gather(server_instance.start_multi_address([(address, port)]), server_instance.publish_loop())


def start_comfyui(asyncio_loop=None):
    loop = asyncio_loop or asyncio.new_event_loop()
    prompt_server = server.PromptServer(loop)
    prompt_server.add_routes()
    hijack_progress(prompt_server)
    threading.Thread(target=prompt_worker, daemon=True, args=(prompt_server.prompt_queue, prompt_server)).start()

    async def start_all():
        await prompt_server.setup()
        await run(prompt_server, args.listen, args.port)

    return loop, prompt_server, start_all


if __name__ == "__main__":
    event_loop, _, start_everything = start_comfyui()
    event_loop.run_until_complete(start_everything())
