"""Code comparison: how many codes of an ONNX model are not those of the network in integers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qat.export.integer.graph import Graph, Quantize
from qat.export.integer.network import IntegerNetwork, as_codes, moved_codes
from qat.export.onnx.model import emitted_graph, onnx_model
from qat.export.onnx.run import session
from qat.export.onnx.value import code_of_zero


def onnx_moved_codes(
    graph: Graph, image: Tensor, *, steps: Mapping[str, float] | None = None
) -> dict[str, tuple[int, int]]:
    """Per quantizer, codes that differ and all codes, each given the model's own codes before it.

    So a code that moved is counted where it moved, and not again in every layer behind.

    Args:
        graph: of the network.
        image: normalised images (N, C, H, W).
        steps: as `onnx_model` takes them.
    """
    network = IntegerNetwork(emitted_graph(graph, steps or {}))
    data = onnx_model(graph, steps=steps, exposed=True).SerializeToString()
    running = session(data, "the model")
    names = [output.name for output in running.get_outputs()]
    answers = dict(zip(names, running.run(names, {"image": image.numpy()}), strict=True))
    given = {}
    for node in network.graph:
        if isinstance(node, Quantize):
            rule = network.rules[node.name]
            codes = torch.from_numpy(answers[node.path]).double() - code_of_zero(rule)
            given[node.name] = as_codes(codes * rule.step, rule)
    return moved_codes(network, image, given)
