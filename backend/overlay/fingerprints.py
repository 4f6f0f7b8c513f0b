"""What the overlay relies on beyond the names it patches: names that must be there, parameters, and use in routes.

Owns that list. The patched names' own shapes stand with the patches.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from backend.overlay import versions
from backend.overlay.patch import ABSENT, Misfit, Patch, Shape, anything, params, params_start
from backend.overlay.versions.version import Version


def uses(*fragments: str) -> Shape:
    """A function whose source still says each of ``fragments``: it looks these up when it runs."""

    def check(original: Any) -> str | None:
        try:
            source = inspect.getsource(original)
        except (OSError, TypeError):
            return "its source cannot be read"
        missing = [fragment for fragment in fragments if fragment not in source]
        return f"no longer uses {', '.join(missing)}" if missing else None

    return check


def puts_back(*names: str) -> Shape:
    """A list of (module, name) that ComfyUI puts back as they were, after custom nodes were loaded and after each job.

    It holds ``names`` (``module:name``) and nothing else: a patched name among them would be undone.
    """

    def check(original: Any) -> str | None:
        try:
            found = sorted(f"{owner.__name__}:{name}" for owner, name in original)
        except (TypeError, ValueError, AttributeError):
            return f"expected a list of (module, name), found {type(original).__name__}"
        if found != sorted(names):
            return f"expected only {', '.join(names)}, found {', '.join(found) or 'none'}"
        return None

    return check


def expectations(version: Version) -> list[tuple[str, Shape]]:
    """Every name that must be as expected although it is not patched."""
    queue = "execution:PromptQueue"
    return [
        ("hook_breaker_ac10a0:HOOK_BREAK", puts_back("comfy.model_management:cast_to")),
        ("main:start_comfyui", params("asyncio_loop")),
        ("main:run", anything),
        ("main:hijack_progress", params("server_instance")),
        ("main:cleanup_temp", params()),
        ("server:PromptServer.__init__", uses(
            "self.prompt_queue", "self.client_id", "self.sockets[sid]", "self.sockets_metadata", "self.messages",
            "nodes.interrupt_processing", "self.last_node_id", "self.number",
        )),
        ("server:PromptServer.send", params("self", "event", "data", "sid")),
        ("server:PromptServer.send_json", uses("self.sockets.values()", "sid in self.sockets", "self.sockets[sid]")),
        ("server:PromptServer.send_bytes", uses("self.sockets.values()", "sid in self.sockets", "self.sockets[sid]")),
        ("server:PromptServer.publish_loop", uses("self.messages.get()", "self.send(")),
        ("server:PromptServer.get_queue_info", uses("self.prompt_queue.get_tasks_remaining()", "queue_remaining")),
        ("server:PromptServer.queue_updated", params("self")),
        ("server:PromptServer.add_routes", uses("/api")),
        (f"{queue}.__init__", params("self", "server")),
        (f"{queue}.put", params(*version.put)),
        (f"{queue}.get", params("self", "timeout")),
        (f"{queue}.task_done", params(*version.task_done)),
        (f"{queue}.get_history", params_start("self", "prompt_id", "max_items", "offset")),
        (f"{queue}.get_current_queue", uses("self.mutex", "self.currently_running", "self.queue")),
        (f"{queue}.get_current_queue_volatile", uses("self.mutex", "self.currently_running", "self.queue")),
        (f"{queue}.get_tasks_remaining", uses("self.mutex", "self.currently_running", "self.queue")),
        (f"{queue}.wipe_queue", params("self")),
        (f"{queue}.delete_queue_item", params("self", "function")),
        (f"{queue}.wipe_history", params("self")),
        (f"{queue}.delete_history_item", params("self", "id_to_delete")),
        (f"{queue}.set_flag", params("self", "name", "data")),
        (f"{queue}.get_flags", params("self", "reset")),
        (f"{queue}.ExecutionStatus", params("status_str", "completed", "messages")),
        ("execution:PromptExecutor.__init__", params(*version.executor)),
        ("execution:PromptExecutor.execute_async", uses("nodes.interrupt_processing(False)", "self.server.client_id")),
        ("folder_paths:get_folder_paths", params_start("folder_name")),
        ("execution:validate_prompt", params("prompt_id", "prompt", "partial_execution_list")),
        ("nodes:interrupt_processing", uses("model_management.interrupt_current_processing")),
        ("nodes:before_node_execution", uses("model_management.throw_exception_if_processing_interrupted")),
        ("comfy_execution.progress:add_progress_handler", uses("get_progress_state()")),
        ("comfy_execution.progress:ProgressRegistry", params("prompt_id", "dynprompt")),
        ("comfy_execution.progress:WebUIProgressHandler", params("server_instance")),
        ("comfy_execution.utils:get_executing_context", uses("current_executing_context.get")),
        ("comfy_execution.utils:CurrentNodeContext", params_start("prompt_id", "node_id", "list_index")),
        ("comfy.model_management:InterruptProcessingException", anything),
        ("comfy.model_management:unload_all_models", params()),
        ("comfy.model_management:cleanup_models_gc", params()),
        ("comfy.model_management:soft_empty_cache", params_start("force")),
        *((name, anything) for name in version.expects),
    ]


def check(version: Version) -> list[Misfit]:
    """What is not as expected, all of it required."""
    found: Iterable[Misfit | None] = (
        Patch(target, lambda original: original, "", shape=shape).check() for target, shape in expectations(version)
    )
    return [*(misfit for misfit in found if misfit is not None), *_too_new(version)]


def _too_new(version: Version) -> Iterable[Misfit]:
    """Names of a later version: the code is not what its number says, and needs what that version is started with."""
    for other in versions.later(version):
        for mark in other.marks:
            try:
                found = Patch(mark, lambda original: original, "").locate()[2]
            except (ImportError, AttributeError):
                continue
            if found is not ABSENT:
                yield Misfit(mark, f"expected no such name before {other.number}", required=True)
