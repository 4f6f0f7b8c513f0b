"""ComfyUI 0.8.0 (January 2026): sensitive data is a sixth field of queue items, the executor takes ``cache_args``,
there is a jobs API."""

from typing import Any

from backend.overlay.versions.version import Version


def without_secrets(item: tuple[Any, ...]) -> tuple[Any, ...]:
    """A queue item as it may stand in the history."""
    return item[:5] + item[6:]


VERSION = Version(
    number="0.8.0",
    task_done=("self", "item_id", "history_result", "status", "process_item"),
    executor=("self", "server", "cache_type", "cache_args"),
    execute_node=(
        "server", "dynprompt", "caches", "current_item", "extra_data", "executed", "prompt_id", "execution_list",
        "pending_subgraph_results", "pending_async_nodes", "ui_outputs",
    ),
    expects=("comfy_execution.jobs:get_job", "comfy_execution.jobs:get_all_jobs"),
    item_rest=lambda: ({},),
    public=lambda item: list(item[:5]),
    done_extra=lambda: {"process_item": without_secrets},
)
