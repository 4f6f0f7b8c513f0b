"""How far nodes are: one registry per process."""


class ProgressRegistry:
    def __init__(self, prompt_id, dynprompt):
        self.prompt_id = prompt_id
        self.handlers = {}
        self.nodes = {}

    def reset_handlers(self):
        self.handlers.clear()

    def update(self, node_id, value):
        self.nodes[node_id] = value
        for handler in self.handlers.values():
            handler.update(self)


class WebUIProgressHandler:
    def __init__(self, server_instance):
        self.server = server_instance

    def update(self, registry):
        data = {"prompt_id": registry.prompt_id, "nodes": dict(registry.nodes)}
        self.server.send_sync("progress_state", data, self.server.client_id)


global_progress_registry = None


def reset_progress_state(prompt_id, dynprompt):
    global global_progress_registry  # noqa: PLW0603 (the fault that the overlay repairs)
    global_progress_registry = ProgressRegistry(prompt_id, dynprompt)


def get_progress_state():
    return global_progress_registry


def add_progress_handler(handler):
    get_progress_state().handlers["webui"] = handler
