"""Graph of a network: a list of few kinds of nodes, batch norms folded into the layers before them.

Both the integer reference and the ONNX writer read this list; what it cannot hold cannot be
exported, and is named.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from qat.errors import SpecError
from qat.export.packed.weight_codes import WeightCodes
from qat.nn.activation import QuantizedActivation
from qat.nn.activation_codes import CodeRule, code_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value of the network.

    Attributes:
        name: unique.
        inputs: names of the values it is made of.
        shape: of the value, without the batch axis.
    """

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Node):
    """The network's input, normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(Node):
    """A convolution or a linear layer, and the batch norm behind it.

        y_c = multiplier_c * (weight * x)_c + offset_c

    Attributes:
        path: dotted name of the module.
        codes: of the weight, None if it is float.
        weight: the levels in units of the scale if quantized (the scale is in the multiplier), else
            the float weight; float32, (O, I / groups, kH, kW) or (O, I).
        multiplier: float64 (O,).
        offset: float64 (O,).
        offset_size: float64 (O,), sum of the magnitudes that the offset is made of, >= |offset|;
            what float32 loses in adding them up is in proportion to it.
        stride: of a convolution, as padding, dilation and groups.
    """

    path: str
    codes: WeightCodes | None
    weight: Tensor
    multiplier: Tensor
    offset: Tensor
    offset_size: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.weight.ndim == 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine(Node):
    """A batch norm that follows no layer: y_c = multiplier_c x_c + offset_c, float64 (C,)."""

    multiplier: Tensor
    offset: Tensor
    offset_size: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize(Node):
    """An activation quantizer.

    Attributes:
        path: dotted name of the module.
        quantizer: it.
    """

    path: str
    quantizer: QuantizedActivation


@dataclass(frozen=True, slots=True, kw_only=True)
class Relu(Node):
    """A float ReLU, with its upper end if it has one."""

    ceiling: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve(Node):
    """A smooth activation function, or one that is not a ReLU.

    Attributes:
        kind: see `qat.export.integer.curves`.
        place: how messages call it.
    """

    kind: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiply(Node):
    """The product of two values that broadcast, such as a map and a gate for each channel."""

    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels(Node):
    """Some channels of a map, in an order of their own: a part, or a shuffle.

    Attributes:
        indices: of the channels that are taken.
        place: how messages call it.
    """

    indices: tuple[int, ...]
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped(Node):
    """Channels as groups of channels; no graph that is finished holds one.

    Attributes:
        order: number of the channel at each place, as nested tuples.
    """

    order: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Node):
    """The sum of two values of one shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool(Node):
    """Maximum over windows."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool(Node):
    """Mean over windows without overlap; over the whole map if the window is the map.

    Attributes:
        keeps_axes: whether the answer has axes of size 1 (only a whole map may lose them).
    """

    kernel: tuple[int, int]
    keeps_axes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMean(Node):
    """Mean over windows that overlap, are padded or differ in size.

    Attributes:
        pool: AvgPool2d or AdaptiveAvgPool2d.
        multiple: of the sizes of all windows, the least common one.
        has_zeros: whether zeros around the map count in means.
        place: how messages call it.
    """

    pool: nn.Module
    multiple: int
    has_zeros: bool
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat(Node):
    """Every row and column several times: an enlarged map of nearest neighbours.

    Attributes:
        factor: in rows and columns.
        place: how messages call it.
    """

    factor: tuple[int, int]
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(Node):
    """(N, C, H, W) as (N, C H W)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsample(Node):
    """Every stride-th row and column, and zeros around the channels.

    Attributes:
        stride: in rows and columns.
        channels: zero channels before and behind.
    """

    stride: tuple[int, int]
    channels: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Node):
    """Maps one behind the other, along the channels."""


Graph = list[Node]


def without_groups(graph: Graph) -> Graph:
    """The same network without the `Grouped` values that its shuffles have gone through.

    Raises:
        SpecError: something else is made of groups of channels.
    """
    grouped = {node.name for node in graph if isinstance(node, Grouped)}
    if graph[-1].name in grouped:
        raise SpecError("the network answers channels in groups, which cannot be exported")
    for node in graph:
        if node.name not in grouped and not grouped.isdisjoint(node.inputs):
            raise SpecError(
                f"{node.name} reads channels in groups, which cannot be exported; groups may only "
                "be swapped and joined again, as a channel shuffle does"
            )
    return [node for node in graph if node.name not in grouped]


def check_exact_form(graph: Graph) -> None:
    """Refuse what the faithful and the fast form and QONNX cannot hold.

    Raises:
        SpecError: names the first such thing, and what to do.
    """
    for node in graph:
        if isinstance(node, (Curve, Multiply, Channels, WindowMean, Repeat)):
            raise SpecError(
                f"{node.place} cannot be exported in this form; take format=onnx form=general, "
                "which holds any network that PyTorch exports"
            )


def code_rules(graph: Graph) -> dict[str, CodeRule]:
    """Name of each quantizer's node -> its rule."""
    quantizers = [node for node in graph if isinstance(node, Quantize)]
    return {node.name: code_rule(node.quantizer, node.path) for node in quantizers}


def consumers(graph: Graph) -> dict[str, list[Node]]:
    """Name of each value -> the nodes that use it; the last node's value is used by none."""
    found: dict[str, list[Node]] = {node.name: [] for node in graph}
    for node in graph:
        for name in node.inputs:
            found[name].append(node)
    return found


def pooled_first(graph: Graph) -> Graph:
    """The same network with each maximum taken in front of the quantizer that it follows.

    The code of a maximum is the maximum of the codes. Done where the layer before is float: its
    runtimes pool floats faster than bytes, and fewer values are left to quantize.
    """
    uses, nodes = consumers(graph), {node.name: node for node in graph}
    swapped: dict[str, Node] = {}
    for pool in graph:
        before = nodes[pool.inputs[0]] if isinstance(pool, MaxPool) else None
        if not isinstance(before, Quantize) or len(uses[before.name]) != 1:
            continue
        source = nodes[before.inputs[0]]
        if isinstance(source, Layer) and isinstance(nodes[source.inputs[0]], Image):
            # each takes the other's place and keeps its own name
            swapped[before.name] = replace(pool, inputs=before.inputs)
            swapped[pool.name] = replace(before, inputs=(pool.name,), shape=pool.shape)
            renamed = {pool.name: before.name}
            for node in uses[pool.name]:
                inputs = tuple(renamed.get(name, name) for name in node.inputs)
                swapped[node.name] = replace(swapped.get(node.name, node), inputs=inputs)
    return [swapped.get(node.name, node) for node in graph]
