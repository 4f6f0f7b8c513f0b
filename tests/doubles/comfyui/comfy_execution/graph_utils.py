"""Node ids made by nodes: the prefix stands in the class."""


class GraphBuilder:
    root, call, graph = "", 0, 0

    def __init__(self, prefix=None):
        self.prefix = GraphBuilder.alloc_prefix() if prefix is None else prefix

    @classmethod
    def set_default_prefix(cls, prefix_root, call_index, graph_index=0):
        cls.root, cls.call, cls.graph = prefix_root, call_index, graph_index

    @classmethod
    def alloc_prefix(cls, root=None, call_index=None, graph_index=None):
        cls.graph += 1
        return f"{cls.root}.{cls.call}.{cls.graph - 1}."
