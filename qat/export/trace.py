"""From a prepared network to its `Graph`, by symbolic tracing."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from qat.errors import SpecError
from qat.export.convert import Converted
from qat.export.graph import (
    Add,
    Affine,
    AveragePool,
    Flatten,
    Graph,
    Image,
    Layer,
    MaxPool,
    Node,
    Quantize,
    Relu,
    Subsample,
    consumers,
)
from qat.flow import LAYER_TYPES, evaluating
from qat.nn.activation import QuantizedActivation
from qat.surgery import INPUT_QUANTIZER

_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CURE = (
    "export knows Conv2d, Linear, BatchNorm, ReLU and quantized activations, max and average "
    "pooling, flatten and sums; take a model made of these"
)


def network_graph(model: nn.Module, converted: Converted, example: Tensor) -> Graph:
    """The network as nodes in the order of execution; the last one is the logits.

    Args:
        model: prepared network in eval mode.
        converted: its codes.
        example: images (N, C, H, W), N >= 2.

    Raises:
        SpecError: a layer or a function cannot be exported; it is named, with what to do.
    """
    with evaluating(model), torch.no_grad():
        tracer = _Tracer()
        try:
            traced = fx.GraphModule(model, tracer.trace(model))
        except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SpecError(
                f"{type(model).__name__} cannot be followed: its forward depends on values of its "
                f"input ({reason}); {_CURE}"
            ) from error
        ShapeProp(traced).propagate(example)
        translated = _Translation(model, converted, len(example)).graph(traced.graph)
    return _folded(translated)


class _Tracer(fx.Tracer):
    """Keeps activation quantizers whole and sees the ones on the inputs of layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QuantizedActivation):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        # symbolic tracing passes hooks by, and this one is part of the network
        quantizer = dict(m.named_children()).get(INPUT_QUANTIZER)
        if quantizer is not None:
            args = (quantizer(args[0]), *args[1:])
        return super().call_module(m, forward, args, kwargs)


@dataclass
class _Translation:
    """Translates one traced network, node by node."""

    model: nn.Module
    converted: Converted
    images: int

    def __post_init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.alias: dict[fx.Node, str] = {}

    def graph(self, traced: fx.Graph) -> Graph:
        wanted = _needed(traced)
        for node in traced.nodes:
            if node not in wanted:
                continue
            if node.op == "output":
                last = self.alias[node.args[0]]
                return _up_to(list(self.nodes.values()), last)
            self._add(node)
        raise AssertionError("a traced graph ends with its output")

    def _add(self, node: fx.Node) -> None:
        """Translate one traced node; what changes nothing becomes another name of its input."""
        made = self._translated(node)
        if isinstance(made, str):
            self.alias[node] = made
        else:
            self.nodes[made.name] = made
            self.alias[node] = made.name

    def _translated(self, node: fx.Node) -> Node | str:
        place = {"name": node.name, "shape": _shape(node)}
        if node.op == "placeholder":
            return Image(inputs=(), **place)
        if node.op == "call_module":
            path = str(node.target)
            module = self.model.get_submodule(path)
            return self._module(path, module, node, {**place, "inputs": self._inputs(node)})
        if node.op in ("call_function", "call_method"):
            function = _FUNCTIONS.get(_function_name(node))
            if function is not None:
                return function(self, node, place)
            raise _refusal(node, f"the function {_function_name(node)}")
        raise _refusal(node, f"the tensor {node.target}")

    def _module(
        self, path: str, module: nn.Module, node: fx.Node, place: dict[str, Any]
    ) -> Node | str:
        if isinstance(module, QuantizedActivation):
            if module.enabled:
                return Quantize(path=path, quantizer=module, **place)
            return (
                place["inputs"][0] if module.signed else Relu(ceiling=module.ceiling, **place)
            )
        if isinstance(module, LAYER_TYPES):
            return self._layer(path, module, place)
        if isinstance(module, _BATCH_NORMS):
            return Affine(**_norm(module, path), **place)
        if isinstance(module, _SAME):
            return str(place["inputs"][0])
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            return Relu(ceiling=6.0 if isinstance(module, nn.ReLU6) else None, **place)
        if isinstance(module, nn.MaxPool2d):
            return _max_pool(module, place)
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return Flatten(**place)
        if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AvgPool2d)):
            return self._average(node, place, path)
        raise SpecError(f"the layer {path} ({type(module).__name__}) cannot be exported; {_CURE}")

    def _layer(self, path: str, module: Any, place: dict[str, Any]) -> Layer:
        codes = self.converted.weights.get(path)
        if codes is None:
            codes = self._shared(module)
        weight = module.weight.detach().float() if codes is None else codes.levels()
        outputs = weight.shape[0]
        scale = torch.ones(()) if codes is None else codes.scale
        bias = torch.zeros(outputs) if module.bias is None else module.bias.detach()
        geometry: dict[str, Any] = {}
        if not isinstance(module, nn.Linear):
            geometry = _geometry(path, module)
        return Layer(
            path=path,
            codes=codes,
            weight=weight,
            multiplier=scale.double().flatten().expand(outputs).clone(),
            offset=bias.double(),
            **geometry,
            **place,
        )

    def _shared(self, module: Any) -> Any:
        """Codes of a weight that another layer holds as well."""
        for name, codes in self.converted.weights.items():
            if self.model.get_submodule(name).weight is module.weight:
                return codes
        return None

    def _average(self, node: fx.Node, place: dict[str, Any], path: str) -> Node | str:
        """Mean over windows: (H, W) -> (h, w) must divide, and windows must not overlap."""
        before = _shape(node.args[0])  # type: ignore[arg-type]
        after = place["shape"]
        rows, row_rest = divmod(before[1], after[1])
        columns, column_rest = divmod(before[2], after[2])
        module = self.model.get_submodule(path) if node.op == "call_module" else None
        plain = not isinstance(module, nn.AvgPool2d) or (
            _pair(module.kernel_size) == _pair(module.stride) == (rows, columns)
            and not any(_pair(module.padding))
        )
        if row_rest or column_rest or rows == 0 or columns == 0 or not plain:
            raise SpecError(
                f"the pooling {path} maps {before[1]} x {before[2]} to {after[1]} x {after[2]} "
                "by windows that overlap or leave a rest, which cannot be exported; "
                "use another image size"
            )
        if (rows, columns) == (1, 1):
            return str(place["inputs"][0])
        return AveragePool(kernel=(rows, columns), keeps_axes=True, **place)

    def _inputs(self, node: fx.Node) -> tuple[str, ...]:
        return tuple(self.alias[a] for a in node.args if isinstance(a, fx.Node) and a in self.alias)

    # functions and methods of tensors

    def same(self, node: fx.Node, place: dict[str, Any]) -> str:
        return self._inputs(node)[0]

    def add(self, node: fx.Node, place: dict[str, Any]) -> Node:
        inputs = self._inputs(node)
        if len(inputs) != 2 or any(self.nodes[i].shape != place["shape"] for i in inputs):
            raise _refusal(node, "a sum that is not of two maps of one shape")
        return Add(inputs=inputs, **place)

    def relu(self, node: fx.Node, place: dict[str, Any]) -> Node:
        ceiling = 6.0 if _function_name(node) == "relu6" else None
        return Relu(ceiling=ceiling, inputs=self._inputs(node), **place)

    def flatten(self, node: fx.Node, place: dict[str, Any]) -> Node | str:
        inputs = self._inputs(node)[:1]
        before = self.nodes[inputs[0]].shape
        if place["shape"] == before:
            return inputs[0]
        if place["shape"] != (math.prod(before),):
            raise _refusal(node, f"a reshape of {before} to {place['shape']}")
        return Flatten(inputs=inputs, **place)

    def mean(self, node: fx.Node, place: dict[str, Any]) -> Node:
        inputs = self._inputs(node)
        before = self.nodes[inputs[0]].shape
        options = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
        axes = options.get("dim", ())
        dims = {int(a) % (len(before) + 1) for a in (axes if isinstance(axes, (tuple, list)) else [axes])}  # type: ignore[arg-type]
        if len(before) != 3 or dims != {2, 3}:
            raise _refusal(node, "a mean over other axes than rows and columns")
        return AveragePool(
            kernel=(before[1], before[2]),
            keeps_axes=len(place["shape"]) == 3,
            inputs=inputs,
            **place,
        )

    def average(self, node: fx.Node, place: dict[str, Any]) -> Node | str:
        return self._average(node, {**place, "inputs": self._inputs(node)}, node.name)

    def max_pool(self, node: fx.Node, place: dict[str, Any]) -> Node:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        options = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        return _max_pool(nn.MaxPool2d(**options), {**place, "inputs": self._inputs(node)})

    def batch_norm(self, node: fx.Node, place: dict[str, Any]) -> Node:
        names = ("mean", "var", "weight", "bias", "training", "momentum", "eps")
        options = dict(zip(names, node.args[1:], strict=False)) | {
            {"running_mean": "mean", "running_var": "var"}.get(k, k): v
            for k, v in node.kwargs.items()
        }
        tensors = {
            k: _attribute(self.model, v.target) if isinstance(v, fx.Node) else v
            for k, v in options.items()
        }
        folded = _norm_numbers(
            tensors["mean"],
            tensors["var"],
            tensors.get("weight"),
            tensors.get("bias"),
            float(tensors.get("eps", 1e-5)),
        )
        return Affine(inputs=self._inputs(node)[:1], **folded, **place)

    def subsample(self, node: fx.Node, place: dict[str, Any]) -> Node | str:
        index = node.args[1]
        parts = index if isinstance(index, tuple) else (index,)
        steps = [_step(part) for part in parts]
        if len(steps) != 4 or None in steps or steps[:2] != [1, 1]:
            raise _refusal(node, f"the index {index}")
        stride = (int(steps[2] or 1), int(steps[3] or 1))
        return Subsample(stride=stride, channels=(0, 0), inputs=self._inputs(node), **place)

    def pad(self, node: fx.Node, place: dict[str, Any]) -> Node:
        options = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | dict(node.kwargs)
        widths = [int(w) for w in options["pad"]]  # type: ignore[union-attr, arg-type]
        plain = options.get("mode", "constant") == "constant" and not options.get("value")
        if not plain or any(widths[:4]) or len(widths) != 6:
            raise _refusal(node, "a pad of other axes than the channels, or not by zeros")
        channels = (widths[4], widths[5])
        return Subsample(stride=(1, 1), channels=channels, inputs=self._inputs(node), **place)


_FUNCTIONS: dict[str, Callable[[_Translation, fx.Node, dict[str, Any]], Node | str]] = {
    **dict.fromkeys(("dropout", "dropout2d", "contiguous", "clone", "detach"), _Translation.same),
    **dict.fromkeys(("add", "iadd", "add_"), _Translation.add),
    **dict.fromkeys(("relu", "relu_", "relu6"), _Translation.relu),
    **dict.fromkeys(("flatten", "view", "reshape"), _Translation.flatten),
    "mean": _Translation.mean,
    **dict.fromkeys(("adaptive_avg_pool2d", "avg_pool2d"), _Translation.average),
    "max_pool2d": _Translation.max_pool,
    "batch_norm": _Translation.batch_norm,
    "getitem": _Translation.subsample,
    "pad": _Translation.pad,
}


def _needed(traced: fx.Graph) -> set[fx.Node]:
    """Nodes whose tensors reach the output; sizes and assertions do not count."""
    wanted: set[fx.Node] = set()
    waiting = [node for node in traced.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in wanted:
            continue
        wanted.add(node)
        name = _function_name(node)
        sources = node.all_input_nodes
        if name in ("view", "reshape", "batch_norm"):
            sources = sources[:1]  # the others are sizes, or numbers that are read directly
        waiting += [source for source in sources if source.op != "get_attr" or name == ""]
    return wanted


def _function_name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        target: Any = node.target
        found = {operator.getitem: "getitem", F.pad: "pad", F.max_pool2d: "max_pool2d"}
        return found.get(target, str(getattr(target, "__name__", target)))
    return ""


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape"):
        raise _refusal(node, f"{node.name}, which is no tensor")
    return tuple(meta.shape[1:])


def _refusal(node: fx.Node, what: str) -> SpecError:
    stack = node.meta.get("nn_module_stack") or getattr(node, "nn_module_stack", None) or {}
    place = f" in {list(stack)[-1]}" if stack else ""
    return SpecError(f"{what}{place} cannot be exported; {_CURE}")


def _geometry(path: str, module: Any) -> dict[str, Any]:
    if type(module).__name__ not in ("Conv2d", "ParametrizedConv2d"):
        raise SpecError(
            f"the layer {path} ({type(module).__name__}) cannot be exported; {_CURE}"
        )
    if module.padding_mode != "zeros":
        raise SpecError(
            f"the layer {path} pads by {module.padding_mode}, which cannot be exported; "
            "build the model with padding_mode=zeros"
        )
    return {
        "stride": _pair(module.stride),
        "padding": _padding(path, module),
        "dilation": _pair(module.dilation),
        "groups": module.groups,
    }


def _padding(path: str, module: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return _pair(module.padding)
    if module.padding == "valid":
        return (0, 0)
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise SpecError(
            f"the layer {path} pads one side more than the other, which cannot be exported; "
            "use an odd kernel"
        )
    return reach[0] // 2, reach[1] // 2


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _step(part: Any) -> int | None:
    """Step of a slice that leaves nothing out but by its step, else None."""
    if isinstance(part, slice) and part.start in (None, 0) and part.stop is None:
        return int(part.step or 1)
    return None


def _max_pool(module: nn.MaxPool2d, place: Mapping[str, Any]) -> MaxPool:
    return MaxPool(
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride if module.stride is not None else module.kernel_size),
        padding=_pair(module.padding),
        dilation=_pair(module.dilation),
        ceil_mode=bool(module.ceil_mode),
        **place,
    )


def _norm(module: Any, path: str) -> dict[str, Tensor]:
    if module.running_mean is None:
        raise SpecError(
            f"the layer {path} has no running statistics to fold; build it with "
            "track_running_stats=True"
        )
    return _norm_numbers(
        module.running_mean, module.running_var, module.weight, module.bias, module.eps
    )


def _norm_numbers(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> dict[str, Tensor]:
    multiplier = 1 / (var.detach().double() + eps).sqrt()
    if weight is not None:
        multiplier = multiplier * weight.detach().double()
    offset = -mean.detach().double() * multiplier
    if bias is not None:
        offset = offset + bias.detach().double()
    return {"multiplier": multiplier, "offset": offset}


def _attribute(model: nn.Module, path: Any) -> Any:
    value: Any = model
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _up_to(nodes: Graph, last: str) -> Graph:
    """The nodes up to the one whose value is the network's answer."""
    names = [node.name for node in nodes]
    return nodes[: names.index(last) + 1]


def _folded(graph: Graph) -> Graph:
    """Merge each batch norm into the layer whose only use it is; merge subsampling and padding."""
    uses = consumers(graph)
    nodes = {node.name: node for node in graph}
    renamed: dict[str, str] = {}
    for node in graph:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        nodes[node.name] = node = replace(node, inputs=inputs)
        before = nodes[inputs[0]] if inputs else None
        merged = _merged(before, node) if before is not None else None
        if merged is not None and len(uses[node.inputs[0]]) == 1:
            del nodes[node.name]
            nodes[merged.name] = merged
            renamed[node.name] = merged.name
            uses[merged.name] = uses[node.name]
    return list(nodes.values())


def _merged(before: Node | None, node: Node) -> Node | None:
    if isinstance(before, (Layer, Affine)) and isinstance(node, Affine):
        return replace(
            before,
            multiplier=before.multiplier * node.multiplier,
            offset=before.offset * node.multiplier + node.offset,
        )
    if isinstance(before, Subsample) and isinstance(node, Subsample) and before.channels == (0, 0):
        return replace(before, channels=node.channels, shape=node.shape)
    return None
