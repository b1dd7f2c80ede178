"""Steps of the uint8 results in front of a sum, for the fast form of an ONNX model."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qat.export.graph import Graph, Layer
from qat.export.integer import IntegerNetwork, real
from qat.export.onnx_model import summands

_CODES = 127
_SHARES = tuple(0.95**i for i in range(40))  # of the largest value: 1 down to 0.135


def sum_steps(graph: Graph, batches: Iterable[Tensor]) -> dict[str, float]:
    """Name of each layer in front of a sum -> step of the uint8 codes that lose least.

    Of forty steps, largest |y| / 127 times 0.95^i, the one with the smallest mean squared error of
    step * clip(round(y / step), -128, 127) over the batches.

    Args:
        graph: of the network.
        batches: images (N, C, H, W) of the training part; passed over twice.
    """
    layers, network, images = summands(graph), IntegerNetwork(graph), list(batches)
    if not layers:
        return {}
    peaks = dict.fromkeys((layer.name for layer in layers), 0.0)
    for values in _values(network, layers, images):
        for name, y in values.items():
            peaks[name] = max(peaks[name], float(y.abs().max()))
    steps = {
        name: torch.tensor(_SHARES, dtype=torch.float64) * max(peak, 1e-30) / _CODES
        for name, peak in peaks.items()
    }
    losses = {name: torch.zeros(len(_SHARES), dtype=torch.float64) for name in peaks}
    for values in _values(network, layers, images):
        for name, y in values.items():
            for i, step in enumerate(steps[name]):
                rounded = (y / step).round_().clamp_(-_CODES - 1, _CODES).mul_(step)
                losses[name][i] += rounded.sub_(y).square_().sum()
    return {name: float(steps[name][losses[name].argmin()]) for name in peaks}


def _values(
    network: IntegerNetwork, layers: list[Layer], images: list[Tensor]
) -> Iterable[Mapping[str, Tensor]]:
    for image in images:
        found = network.values(image)
        yield {layer.name: real(found[layer.name]) for layer in layers}
