"""ComfyUI 0.33.0 (2026): interrupts are ``BaseException``, jobs can be cancelled by id, memory is managed per process.

Its first supported configuration keeps the older memory manager and the older cache: the new ones reset buffers of
all devices after every node and evict by the RAM of the whole machine.
"""

from typing import Any

from backend.overlay.versions.v0_8_0 import without_secrets
from backend.overlay.versions.version import Version


def _close(main: Any) -> None:
    main.asset_seeder.shutdown()


VERSION = Version(
    number="0.33.0",
    adds=(
        ("--disable-dynamic-vram", "dynamic VRAM resets the buffers of all devices after every node of any lane"),
        ("--cache-classic", "the default cache evicts by the machine's RAM, so that lanes would empty each other's"),
    ),
    off=(("--enable-assets", "the assets system (one database and scanner for the process)"),),
    gives_way=("--cache-lru", "--cache-none", "--cache-ram", "--cache-classic"),
    task_done=("self", "item_id", "history_result", "status", "process_item"),
    executor=("self", "server", "cache_type", "cache_args"),
    execute_node=(
        "server", "dynprompt", "caches", "current_item", "extra_data", "executed", "prompt_id", "execution_list",
        "pending_subgraph_results", "pending_async_nodes", "ui_outputs",
    ),
    marks=(
        *(f"comfy.model_management:{name}" for name in (
            "CROSS_STEP_STATE", "DIRTY_MMAPS", "LARGEST_AIMDO_CASTED_WEIGHT", "LARGEST_CASTED_WEIGHT",
            "STREAM_AIMDO_CAST_BUFFERS", "STREAM_CAST_BUFFERS", "get_all_torch_devices", "reset_cast_buffers",
        )),
        *(f"comfy.memory_management:{name}" for name in (
            "aimdo_enabled", "extra_ram_release", "set_ram_cache_release_state",
        )),
    ),
    expects=(
        "comfy_execution.jobs:cancel_job",
        "comfy.model_management:is_oom",
        "execution:PromptQueue.interrupt_if_running",
    ),
    item_rest=lambda: ({},),
    public=lambda item: list(item[:5]),
    done_extra=lambda: {"process_item": without_secrets},
    close=_close,
)
