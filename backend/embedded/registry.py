"""Which nodes there are, by name."""

from backend.embedded import nodes_image, nodes_latent, nodes_testing
from backend.embedded.node import NodeClass


def registry(*, testing: bool = False) -> dict[str, NodeClass]:
    """All nodes of the engine; ``testing`` adds those that fail on purpose."""
    nodes = [*nodes_latent.NODES, *nodes_image.NODES, *(nodes_testing.NODES if testing else ())]
    return {node.name: node for node in nodes}
