"""Integer network: codes in, int32 sums, multiply-adds of integers, codes out.

Between two quantizers a value is a `Combination`: int32 tensors, each with one real multiplier per
channel, and an offset; batch norms change only these, residual sums only join them. A quantizer
turns the multipliers into integers of some fifty binary places, adds up in int64 and shifts. So
every code is that of the network in real numbers, up to 2^-f (1 + peaks) / 2 steps around a jump.

An activation function that is no ReLU quantizer, `Curved`, is compared with thresholds of its sum
where a quantizer follows, else rounded to 31 bits of what it may reach, as are products and means
of such values: that moves a code only where the sum of these roundings reaches a jump.

What a float network's image feeds (unless `quant.input_bits` is set), and float activations, are
computed in float64 with the weights' levels. So are a layer, a maximum or a flattened map of sums
that no quantizer has made codes of.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.errors import expect
from qat.export.integer.curves import Curved, curve_of, narrowed, product, scaled_integer
from qat.export.integer.graph import (
    Add,
    Affine,
    AveragePool,
    Channels,
    Concat,
    Curve,
    Flatten,
    Graph,
    Image,
    Layer,
    MaxPool,
    Multiply,
    Node,
    Quantize,
    Relu,
    Repeat,
    Subsample,
    WindowMean,
    code_rules,
)
from qat.export.integer.numbers import Combination, Term, over_channels
from qat.export.integer.windows import repeated, window_mean
from qat.export.packed.weight_codes import WeightCodes
from qat.nn.activation_codes import CodeRule

Value = Combination | Curved | Tensor


class IntegerNetwork:
    """A network's graph, executed on integers.

    Args:
        graph: as `qat.export.integer.trace.network_graph` makes it.
    """

    def __init__(self, graph: Graph) -> None:
        expect(graph, list, "graph", "give what network_graph(net, converted, example) answers")
        self.graph = graph
        self.rules = code_rules(graph)

    def __call__(self, image: Tensor) -> Tensor:
        """Logits float32 (N, K) of normalised images (N, C, H, W)."""
        return real(self.values(image)[self.graph[-1].name]).float()

    @torch.no_grad()
    def values(
        self, image: Tensor, *, given: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Every value of the network.

        Args:
            image: normalised images (N, C, H, W).
            given: values that are taken instead of computed, by the name of their node.
        """
        found: dict[str, Value] = {}
        for node in self.graph:
            inputs = [found[name] for name in node.inputs]
            taken = (given or {}).get(node.name)
            found[node.name] = self._value(node, inputs, image) if taken is None else taken
        return found

    def codes(
        self, image: Tensor, *, given: Mapping[str, Value] | None = None
    ) -> dict[str, Tensor]:
        """Dotted name of each activation quantizer -> its codes, int32."""
        values = self.values(image, given=given)
        return {
            node.path: values[node.name].terms[0].integers  # type: ignore[union-attr]
            for node in self.graph
            if isinstance(node, Quantize)
        }

    def _value(self, node: Node, inputs: list[Value], image: Tensor) -> Value:
        if isinstance(node, Image):
            return image.double()
        if isinstance(node, Layer):
            return layer_value(node, inputs[0])
        if isinstance(node, Quantize):
            return quantized(self.rules[node.name], inputs[0])
        inputs = [x.rounded() if isinstance(x, Curved) else x for x in inputs]
        if isinstance(node, Add):
            return _sum(*inputs)
        if isinstance(node, Multiply):
            return _product(*inputs)
        if isinstance(node, Concat):
            return _joined(inputs)
        simple: Value = _SIMPLE[type(node)](node, inputs[0])
        return simple


def moved_codes(
    network: IntegerNetwork, image: Tensor, given: Mapping[str, Combination]
) -> dict[str, tuple[int, int]]:
    """Per quantizer, how many given codes are not the network's, and how many there are.

    Args:
        network: the reference.
        image: normalised images (N, C, H, W).
        given: name of the node of EVERY quantizer -> the codes that another engine found there;
            each is compared with what the reference makes of the given codes before it.
    """
    values = network.values(image, given=given)
    counts: dict[str, tuple[int, int]] = {}
    for node in network.graph:
        if isinstance(node, Quantize):
            own = quantized(network.rules[node.name], values[node.inputs[0]]).terms[0].integers
            theirs = given[node.name].terms[0].integers
            counts[node.path] = int((own != theirs).sum()), own.numel()
    return counts


def real(value: Value) -> Tensor:
    """A value in float64."""
    return value if isinstance(value, Tensor) else value.real()


def as_codes(values: Tensor, rule: CodeRule) -> Combination:
    """Codes of values that lie on the levels of a rule, as a trained network's quantizer gives."""
    integers = (values.double() / rule.step).round().int()
    return _code_term(integers, rule)


def quantized(rule: CodeRule, value: Value) -> Combination:
    """Codes of a value, by integers alone where it is made of them."""
    if isinstance(value, Curved):
        return _code_term(value.codes(rule), rule)
    if isinstance(value, Combination):
        z, places = value.fixed_point(rule.step, rule.shift)
        # the ceiling of z / 2^places, as the shift of a negative number rounds down
        codes = torch.where(z >= 0, 1, -1) if rule.is_sign else -(-z >> places)
    else:
        z = value / rule.step - over_channels(rule.shift, value)
        codes = torch.where(z >= 0, 1, -1) if rule.is_sign else z.ceil()
    return _code_term(codes.clamp(rule.low, rule.high).int(), rule)


def _code_term(integers: Tensor, rule: CodeRule) -> Combination:
    step = torch.tensor(rule.step, dtype=torch.float64)
    return Combination((Term(integers, step, rule.peak),), torch.zeros((), dtype=torch.float64))


def layer_value(node: Layer, x: Value) -> Value:
    """A layer of integers where both its weight and its input are, else of float64."""
    if node.codes is None or not isinstance(x, Combination) or not _fits(node.codes, x):
        y = _linear(node, real(x), node.weight.double())
        return y * over_channels(node.multiplier, y) + over_channels(node.offset, y)
    weight, unit = node.codes.integers()
    term = x.terms[0]
    sums = _linear(node, term.integers, weight)
    peak = term.peak * int(weight.flatten(1).abs().sum(dim=1).max())
    multiplier = node.multiplier * unit * term.multiplier
    return Combination((Term(sums, multiplier, peak),), node.offset)


def _fits(codes: WeightCodes, x: Combination) -> bool:
    """Whether a layer multiplies it as integers: codes, and what keeps its sums within 32 bits."""
    if not x.is_scaled_integer:
        return False
    weight, _ = codes.integers()
    return x.terms[0].peak * int(weight.flatten(1).abs().sum(dim=1).max()) < 2**31


def _linear(node: Layer, x: Tensor, weight: Tensor) -> Tensor:
    if not node.is_conv:
        return x @ weight.t()
    geometry: dict[str, Any] = {
        "stride": node.stride,
        "padding": node.padding,
        "dilation": node.dilation,
        "groups": node.groups,
    }
    if node.dilation != (1, 1) and x.dtype == torch.int32:
        # torch has no such kernel for integers; sums below 2^31 are exact in float64
        return F.conv2d(x.double(), weight.double(), **geometry).int()
    return F.conv2d(x, weight, **geometry)


def _sum(a: Value, b: Value) -> Value:
    if isinstance(a, Combination) and isinstance(b, Combination):
        return a + b
    return real(a) + real(b)


def _product(a: Value, b: Value) -> Value:
    """Of two values of integers the product of these; each is one integer tensor first."""
    if isinstance(a, Combination) and isinstance(b, Combination):
        return product(scaled_integer(a), scaled_integer(b))
    return real(a) * real(b)


def _joined(values: list[Value]) -> Value:
    """Values along the channels; integers where each is made of them."""
    parts = [
        v if len(v.terms) == 1 else scaled_integer(v) for v in values if isinstance(v, Combination)
    ]
    if len(parts) < len(values):
        return torch.cat([real(value) for value in values], dim=1)
    terms = [part.terms[0] for part in parts]
    integers = torch.cat([term.integers for term in terms], dim=1)
    multiplier = _per_channel([term.multiplier for term in terms], terms)
    offset = _per_channel([part.offset for part in parts], terms)
    return Combination((Term(integers, multiplier, max(t.peak for t in terms)),), offset)


def _per_channel(numbers: list[Tensor], terms: list[Term]) -> Tensor:
    """Numbers of each term as numbers of each channel; one number if all terms have the same."""
    if all(number.ndim == 0 and number == numbers[0] for number in numbers):
        return numbers[0]
    pairs = zip(numbers, terms, strict=True)
    return torch.cat([number.expand(term.integers.shape[1]) for number, term in pairs])


def _affine(node: Affine, x: Value) -> Value:
    if isinstance(x, Combination):
        return x.scaled(node.multiplier, node.offset)
    y = real(x)
    return y * over_channels(node.multiplier, y) + over_channels(node.offset, y)


def _relu(node: Relu, x: Value) -> Value:
    return _curve("relu" if node.ceiling is None else "relu6", x)


def _curve(kind: str, x: Value) -> Value:
    return Curved(kind, x) if isinstance(x, Combination) else curve_of(kind).value(real(x))


def _channels(node: Channels, x: Value) -> Value:
    indices = torch.tensor(node.indices)
    if not isinstance(x, Combination):
        return real(x)[:, indices]
    picked = x.mapped(lambda t: t[:, indices])
    terms = (replace(t, multiplier=_picked(t.multiplier, indices)) for t in picked.terms)
    return Combination(tuple(terms), _picked(x.offset, indices))


def _picked(numbers: Tensor, indices: Tensor) -> Tensor:
    return numbers if numbers.ndim == 0 else numbers[indices]


def _max_pool(node: MaxPool, x: Value) -> Value:
    def pool(t: Tensor) -> Tensor:
        return F.max_pool2d(
            t, node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode
        )

    # the maximum of codes is the code of the maximum
    if isinstance(x, Combination) and x.is_scaled_integer:
        return x.mapped(lambda t: pool(t.double()).int())
    return pool(real(x))


def _average_pool(node: AveragePool, x: Value) -> Value:
    rows, columns = node.kernel
    axes = (3, 5) if node.keeps_axes else (2, 3, 4, 5)

    def add_up(t: Tensor) -> Tensor:
        n, c, height, width = t.shape
        windows = t.reshape(n, c, height // rows, rows, width // columns, columns)
        return windows.sum(dim=axes)  # of integers in int64

    size = rows * columns
    if not isinstance(x, Combination):
        return add_up(real(x)) / size
    terms = (narrowed(add_up(t.integers), t.multiplier / size, size * t.peak) for t in x.terms)
    return Combination(tuple(terms), x.offset)


def _flatten(node: Flatten, x: Value) -> Value:
    if isinstance(x, Combination) and x.is_scaled_integer:
        return x.mapped(lambda t: t.flatten(1))
    return real(x).flatten(1)


def _subsample(node: Subsample, x: Value) -> Value:
    def pick(t: Tensor) -> Tensor:
        thinned = t[:, :, :: node.stride[0], :: node.stride[1]]
        return F.pad(thinned, (0, 0, 0, 0, *node.channels))

    if isinstance(x, Combination) and x.is_scaled_integer:
        return x.mapped(pick)
    return pick(real(x))


def _repeat(node: Repeat, x: Value) -> Value:
    if isinstance(x, Combination):
        return x.mapped(lambda t: repeated(node.factor, t))
    return repeated(node.factor, real(x))


_SIMPLE: dict[type[Node], Any] = {
    Affine: _affine,
    Channels: _channels,
    Curve: lambda node, x: _curve(node.kind, x),
    Relu: _relu,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    Flatten: _flatten,
    Subsample: _subsample,
    WindowMean: window_mean,
    Repeat: _repeat,
}
