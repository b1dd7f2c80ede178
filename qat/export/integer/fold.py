"""Batch-norm folding, and padding folded into the subsampling before it."""

from dataclasses import replace

from qat.export.integer.graph import Affine, Graph, Layer, Node, Subsample, consumers


def folded(graph: Graph) -> Graph:
    """The same network with fewer nodes: each is merged into the one whose only use it is."""
    uses = consumers(graph)
    nodes = {node.name: node for node in graph}
    renamed: dict[str, str] = {}
    for original in graph:
        inputs = tuple(renamed.get(name, name) for name in original.inputs)
        node = nodes[original.name] = replace(original, inputs=inputs)
        merged = _merged(nodes[inputs[0]], node) if inputs else None
        if merged is not None and len(uses[inputs[0]]) == 1:
            del nodes[node.name]
            nodes[merged.name] = merged
            renamed[node.name] = merged.name
            uses[merged.name] = uses[node.name]
    return list(nodes.values())


def _merged(before: Node, node: Node) -> Node | None:
    """One node that does what these two do, None if there is none."""
    if isinstance(before, (Layer, Affine)) and isinstance(node, Affine):
        return replace(
            before,
            multiplier=before.multiplier * node.multiplier,
            offset=before.offset * node.multiplier + node.offset,
            offset_size=before.offset_size * node.multiplier.abs() + node.offset_size,
        )
    if isinstance(before, Subsample) and isinstance(node, Subsample):
        is_pad = before.channels == (0, 0) and node.stride == (1, 1)
        return replace(before, channels=node.channels, shape=node.shape) if is_pad else None
    return None
