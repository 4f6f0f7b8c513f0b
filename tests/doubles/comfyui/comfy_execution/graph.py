"""A prompt as nodes."""


class DynamicPrompt:
    def __init__(self, original_prompt):
        self.original_prompt = original_prompt

    def get_node(self, node_id):
        return self.original_prompt[node_id]
