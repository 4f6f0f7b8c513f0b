"""One queue, and an executor that runs a prompt's nodes one after the other."""

import asyncio
import heapq
import threading
import traceback
from enum import Enum
from types import SimpleNamespace
from typing import NamedTuple

import comfy.model_management
import nodes
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.progress import (
    WebUIProgressHandler,
    add_progress_handler,
    get_progress_state,
    reset_progress_state,
)
from comfy_execution.utils import CurrentNodeContext


class ExecutionResult(Enum):
    SUCCESS = 0
    FAILURE = 1
    PENDING = 2


async def execute(server, dynprompt, caches, current_item, extra_data, executed, prompt_id, execution_list,
                  pending_subgraph_results, pending_async_nodes):
    node = dynprompt.get_node(current_item)
    server.last_node_id = current_item
    server.send_sync("executing", {"node": current_item, "prompt_id": prompt_id}, server.client_id)
    try:
        nodes.before_node_execution()
        GraphBuilder.set_default_prefix(current_item, 0, 0)
        with CurrentNodeContext(prompt_id, current_item):
            caches[current_item] = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].run(**node["inputs"])
    except comfy.model_management.InterruptProcessingException as error:
        return ExecutionResult.FAILURE, None, error
    except Exception as error:  # noqa: BLE001 (whatever a node raises)
        if isinstance(error, comfy.model_management.OOM_EXCEPTION):
            comfy.model_management.unload_all_models()
        return ExecutionResult.FAILURE, None, error
    get_progress_state().update(current_item, 1)
    data = {"node": current_item, "output": {"value": [caches[current_item]]}, "prompt_id": prompt_id}
    server.send_sync("executed", data, server.client_id)
    return ExecutionResult.SUCCESS, None, None


class PromptExecutor:
    made = 0

    def __init__(self, server, cache_type=False, cache_size=None):
        PromptExecutor.made += 1
        self.server = server
        self.reset()

    def reset(self):
        self.status_messages = []
        self.success = True

    def add_message(self, event, data, broadcast):
        self.status_messages.append((event, data))
        if self.server.client_id is not None or broadcast:
            self.server.send_sync(event, data, self.server.client_id)

    def handle_execution_error(self, prompt_id, prompt, current_outputs, executed, error, ex):
        stopped = isinstance(ex, comfy.model_management.InterruptProcessingException)
        data = {"prompt_id": prompt_id, "node_id": error["node_id"], "exception_type": type(ex).__name__}
        self.add_message("execution_interrupted" if stopped else "execution_error", data, broadcast=stopped)

    def execute(self, prompt, prompt_id, extra_data={}, execute_outputs=[]):  # noqa: B006 (its signature there)
        asyncio.run(self.execute_async(prompt, prompt_id, extra_data, execute_outputs))

    async def execute_async(self, prompt, prompt_id, extra_data={}, execute_outputs=[]):  # noqa: B006 (as above)
        nodes.interrupt_processing(False)
        self.server.client_id = extra_data.get("client_id")
        self.status_messages = []
        self.success = True
        self.add_message("execution_start", {"prompt_id": prompt_id}, broadcast=False)
        dynprompt = DynamicPrompt(prompt)
        reset_progress_state(prompt_id, dynprompt)
        add_progress_handler(WebUIProgressHandler(self.server))
        self.add_message("execution_cached", {"nodes": [], "prompt_id": prompt_id}, broadcast=False)
        values, done = {}, set()
        self.caches = SimpleNamespace(outputs=SimpleNamespace(cache=values))
        for node_id in prompt:
            _, _, error = await execute(
                self.server, dynprompt, values, node_id, extra_data, done, prompt_id, None, {}, {}
            )
            self.success = error is None
            if error is not None:
                told = {"node_id": node_id, "traceback": traceback.format_tb(error.__traceback__)}
                self.handle_execution_error(prompt_id, prompt, values, done, told, error)
                break
        else:
            self.add_message("execution_success", {"prompt_id": prompt_id}, broadcast=False)
        self.history_result = {"outputs": {node: {"value": [value]} for node, value in values.items()}}
        self.server.last_node_id = None


async def validate_inputs(prompt_id, prompt, item, validated):
    name = prompt[item]["inputs"].get("ckpt_name", "one")
    problem = {"type": "value_not_in_list", "message": "Value not in list", "details": f"ckpt_name: {name!r}"}
    known = name in ("one", "two", "bad", "huge")
    return known, [] if known else [problem], item


async def validate_prompt(prompt_id, prompt, partial_execution_list):
    unknown = [node for node in prompt.values() if node["class_type"] not in nodes.NODE_CLASS_MAPPINGS]
    return not unknown, {"type": "unknown"} if unknown else None, list(prompt), {}


class PromptQueue:
    def __init__(self, server):
        self.server = server
        self.mutex = threading.RLock()
        self.not_empty = threading.Condition(self.mutex)
        self.task_counter = 0
        self.queue = []
        self.currently_running = {}
        self.history = {}
        self.flags = {}

    class ExecutionStatus(NamedTuple):
        status_str: str
        completed: bool
        messages: list

    def put(self, item):
        with self.not_empty:
            heapq.heappush(self.queue, item)
            self.server.queue_updated()
            self.not_empty.notify()

    def get(self, timeout=None):
        with self.not_empty:
            if not self.queue:
                self.not_empty.wait(timeout)
            if not self.queue:
                return None
            item, number = heapq.heappop(self.queue), self.task_counter
            self.task_counter = number + 1
            self.currently_running[number] = item
            self.server.queue_updated()
            return item, number

    def task_done(self, item_id, history_result, status):
        with self.mutex:
            item = self.currently_running.pop(item_id)
            if "secret" in item[3]:
                item[3].pop("secret")
            entry = {"prompt": item, "outputs": {}, "status": status._asdict()}
            self.history[item[1]] = {**entry, **history_result}
            self.server.queue_updated()

    def get_current_queue(self):
        with self.mutex:
            return list(self.currently_running.values()), list(self.queue)

    def get_current_queue_volatile(self):
        with self.mutex:
            return list(self.currently_running.values()), list(self.queue)

    def get_tasks_remaining(self):
        with self.mutex:
            return len(self.queue) + len(self.currently_running)

    def wipe_queue(self):
        with self.mutex:
            self.queue = []
            self.server.queue_updated()

    def delete_queue_item(self, function):
        with self.mutex:
            found = [item for item in self.queue if function(item)]
            if found and len(self.queue) == 1:
                self.wipe_queue()
            elif found:
                self.queue.remove(found[0])
                heapq.heapify(self.queue)
                self.server.queue_updated()
            return bool(found)

    def get_history(self, prompt_id=None, max_items=None, offset=-1, map_function=None):
        with self.mutex:
            if prompt_id is None:
                return dict(self.history)
            return {prompt_id: self.history[prompt_id]} if prompt_id in self.history else {}

    def wipe_history(self):
        with self.mutex:
            self.history = {}

    def delete_history_item(self, id_to_delete):
        with self.mutex:
            self.history.pop(id_to_delete, None)

    def set_flag(self, name, data):
        with self.not_empty:
            self.flags[name] = data
            self.not_empty.notify()

    def get_flags(self, reset=True):
        with self.mutex:
            found = dict(self.flags)
            if reset:
                self.flags = {}
            return found
