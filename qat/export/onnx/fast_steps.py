"""Calibration of the fast ONNX form: steps of its bytes, of the image and in front of sums."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qat.export.integer.graph import Graph, Layer, consumers
from qat.export.integer.network import IntegerNetwork, quantized, real
from qat.export.onnx.model import integer_stem, summands
from qat.nn.activation_codes import CodeRule

_LARGEST = 127
_SHARES = tuple(0.93**i for i in range(40))  # of the largest value: 1 down to 0.06


def fast_steps(graph: Graph, images: Iterable[Tensor]) -> dict[str, float]:
    """Name of the image and of each layer in front of a sum -> step of its bytes.

    The image's is the largest |pixel| / 127; it is left out where the first layer is float anyway.

    Args:
        graph: of the network.
        images: batches (N, C, H, W) of the training part.
    """
    batches = list(images)
    steps = sum_steps(graph, batches)
    stem = integer_stem(graph)
    if stem is not None:
        largest = max(float(batch.abs().max()) for batch in batches)
        steps[stem.name] = max(largest, 1e-30) / _LARGEST
    return steps


def sum_steps(graph: Graph, images: Iterable[Tensor]) -> dict[str, float]:
    """Name of each layer in front of a sum -> step of its uint8 codes that moves least behind it.

    Of forty steps, largest |y| / 127 times 0.93^i, the one with the smallest sum of |code - code'|
    over the images: `code` of the quantizer behind the exact sum, code' with

        y' = step * clip(round(y / step), -128, 127)

    in place of y, the other summand as it is.

    Args:
        graph: of the network.
        images: batches (N, C, H, W) of the training part; passed over twice.
    """
    layers, network, batches = summands(graph), IntegerNetwork(graph), list(images)
    places = _places(graph, network, layers)
    peaks = dict.fromkeys(places, 0.0)
    for values in _values(network, places, batches):
        for name, (y, _) in values.items():
            peaks[name] = max(peaks[name], float(y.abs().max()))
    steps = {
        name: torch.tensor(_SHARES, dtype=torch.float64) * max(peak, 1e-30) / _LARGEST
        for name, peak in peaks.items()
    }
    losses = {name: torch.zeros(len(_SHARES), dtype=torch.float64) for name in places}
    for values in _values(network, places, batches):
        for name, (y, total) in values.items():
            losses[name] += _moved(y, total, steps[name], places[name][1])
    return {name: float(steps[name][losses[name].argmin()]) for name in places}


def _places(
    graph: Graph, network: IntegerNetwork, layers: list[Layer]
) -> dict[str, tuple[str, CodeRule]]:
    """Name of a layer -> name of its sum, rule of the quantizer behind that."""
    uses = consumers(graph)
    sums = {layer.name: uses[layer.name][0].name for layer in layers}
    return {name: (total, network.rules[uses[total][0].name]) for name, total in sums.items()}


def _values(
    network: IntegerNetwork, places: Mapping[str, tuple[str, CodeRule]], batches: list[Tensor]
) -> Iterable[dict[str, tuple[Tensor, Tensor]]]:
    """Per batch: name of a layer -> its value and that of its sum."""
    for batch in batches if places else ():
        found = network.values(batch)
        yield {name: (real(found[name]), real(found[place[0]])) for name, place in places.items()}


def _moved(y: Tensor, total: Tensor, steps: Tensor, rule: CodeRule) -> Tensor:
    """Sum of |code - code'| for each step."""
    exact, others = _codes(total, rule), total - y
    moved = []
    for step in steps:
        rounded = (y / step).round_().clamp_(-_LARGEST - 1, _LARGEST).mul_(step)
        moved.append((_codes(rounded.add_(others), rule) - exact).abs().sum())
    return torch.stack(moved).double()


def _codes(value: Tensor, rule: CodeRule) -> Tensor:
    return quantized(rule, value).terms[0].integers
