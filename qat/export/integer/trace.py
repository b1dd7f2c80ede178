"""Symbolic tracing: from a prepared network to its `Graph`."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from qat.errors import SpecError, expect
from qat.export.integer.fold import folded
from qat.export.integer.functions import channels, function_node
from qat.export.integer.graph import Graph, Image, Node, Quantize, without_groups
from qat.export.integer.modules import (
    constant_affine,
    functional_layer,
    layer_node,
    module_node,
)
from qat.export.integer.mutation import Observed, check_unchanged
from qat.export.integer.refusals import CURE, Site, function_name, place_of, refusal_of
from qat.export.integer.tracer import NetworkTracer
from qat.export.packed.convert import Converted
from qat.nn.activation import QuantizedActivation
from qat.quantize.activations import activation_quantizers
from qat.quantize.call_sites import CALL_SITES, counted
from qat.quantize.modes import evaluating
from qat.quantize.products import trace
from qat.quantize.reach import Reach, known_reach
from qat.quantize.weights import LAYER_TYPES, latent_weight

_OF_LAYERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ARITHMETIC = {  # names of functions and methods -> what they do
    **dict.fromkeys(("add", "iadd", "add_"), "add"),
    **dict.fromkeys(("sub", "isub", "sub_"), "sub"),
    **dict.fromkeys(("mul", "imul", "mul_", "multiply"), "mul"),
    **dict.fromkeys(("truediv", "itruediv", "div", "div_"), "div"),
}
_OF_ONE_TENSOR = ("view", "reshape")  # their further inputs are sizes


def network_graph(
    model: nn.Module, converted: Converted, example: Tensor, *, is_ours: bool = False
) -> Graph:
    """The network as nodes in the order of execution; the last one is the logits.

    Args:
        model: prepared network; its mode is left as it is.
        converted: its codes.
        example: images (N, C, H, W), N >= 2.
        is_ours: whether the network is a copy already, that nobody needs afterwards.

    Raises:
        SpecError: a layer or a function cannot be exported; it is named, with what to do.
    """
    expect(converted, Converted, "converted", "give what convert(net, spec) answers")
    model = model if is_ours else _copied(model)
    # inference tensors do not count their changes, and changes shall not reach the caller's images
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        example = example.clone()
        traced = _traced(model, example)
        run = Observed(traced)
        run.propagate(example)
        made = (known_reach(model) or Reach()).made
        codes = {
            id(latent_weight(model, name)): weight
            for name, weight in converted.weights.items()
            if name not in made
        }
        graph = _Translation(model, codes).graph(traced.graph, run)
        _check_quantizers(model, traced.graph, example)
        return folded(graph)


def _copied(model: nn.Module) -> nn.Module:
    """A copy, as a network that keeps something from one call to the next would keep symbols."""
    try:
        return copy.deepcopy(model)
    except RuntimeError:  # it holds tensors that autograd made, which are not copied
        return model


def _check_quantizers(model: nn.Module, traced: fx.Graph, example: Tensor) -> None:
    """Refuse a graph without a quantizer that acts in the network: it would be another network."""
    called = trace(model, example).module_calls
    known = {node.target for node in traced.nodes if node.op == "call_module"}
    for name in activation_quantizers(model):
        if name in called and name not in known:
            raise SpecError(f"the quantizer {name} cannot be followed and exported; {CURE}")


def _traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
    tracer = NetworkTracer(example)
    try:
        with counted(model):  # the hooks of the network itself are passed by
            return fx.GraphModule(model, tracer.trace(model))
    except SpecError:
        raise
    except Exception as error:  # whatever the model's own code makes of symbols for tensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"{type(model).__name__} cannot be followed: its forward depends on values of its "
            f"input ({reason}); {CURE}"
        ) from error


@dataclass
class _Translation:
    """Translates one traced network, node by node.

    Attributes:
        model: the network.
        codes: id of a latent weight -> its codes; layers that share a weight share these.
        nodes: those made so far, by name.
        made: what each traced node has become; one that changes nothing is its input's node.
    """

    model: nn.Module
    codes: dict[int, Any]
    nodes: dict[str, Node] = field(default_factory=dict)
    made: dict[fx.Node, Node] = field(default_factory=dict)

    def graph(self, traced: fx.Graph, run: Observed) -> Graph:
        wanted = _needed(traced)
        check_unchanged(run, wanted, _read_by, partial(place_of, model=self.model))
        for source in traced.nodes:
            is_value = source.op != "output" and not _is_taken_apart(source)
            if is_value and source in wanted and not _is_left_out(source):
                node = self.made[source] = self._node(source)
                self.nodes.setdefault(node.name, node)
        answer: Any = traced.output_node().args[0]
        if not isinstance(answer, fx.Node):
            raise SpecError(
                f"{type(self.model).__name__} answers {type(answer).__name__} instead of one "
                "tensor and cannot be exported; take a model that answers its logits"
            )
        last = list(self.nodes).index(self.made[answer].name)
        return without_groups(list(self.nodes.values())[: last + 1])

    def _node(self, source: fx.Node) -> Node:
        if source.op == "call_module":
            return self._module(str(source.target), source)
        whole = source.args[0] if source.args else None
        if isinstance(whole, fx.Node) and _is_taken_apart(whole):
            return self._part(source, whole)
        if function_name(source) in ("linear", "conv2d"):
            return self._functional_layer(source)
        site = self._site(source)
        if source.op == "placeholder":
            return Image(**site.fields)
        if len(site.inputs) == 1 and (name := _ARITHMETIC.get(function_name(source))):
            return self._with_constant(name, source, site)
        args = tuple(map(self._option, source.args[1:]))
        kwargs = {name: self._option(value) for name, value in source.kwargs.items()}
        return function_node(function_name(source), args, kwargs, site)

    def _part(self, source: fx.Node, whole: fx.Node) -> Node:
        """One of the tensors that torch.chunk or split makes of a map, along the channels."""
        place, meta = place_of(source, self.model), source.meta["tensor_meta"]
        before = self.made.get(whole.all_input_nodes[0])
        if before is None:
            raise refusal_of(place, "is a part of what is no map", CURE)
        parts = [tuple(part.shape[1:]) for part in whole.meta["tensor_meta"]]
        shape = tuple(meta.shape[1:])
        site = Site(source.name, shape, (before,), place)
        if sum(part[0] for part in parts) != before.shape[0] or shape[1:] != before.shape[1:]:
            raise site.refusal("is a part along other axes than the channels")
        start = sum(part[0] for part in parts[: cast(int, source.args[1])])
        return channels(site, range(start, start + shape[0]))

    def _functional_layer(self, source: fx.Node) -> Node:
        given = dict(zip(_OF_LAYERS, source.args, strict=False)) | dict(source.kwargs)
        site, weight = self._site(source), given["weight"]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            raise site.refusal("multiplies by what is no weight of the model")
        options = {name: self._option(value) for name, value in given.items() if name != "input"}
        tensors = [options["weight"], options.get("bias")]
        if not all(tensor is None or isinstance(tensor, Tensor) for tensor in tensors):
            raise site.refusal("multiplies by what is no weight of the model")
        # which call such a quantizer belongs to is counted, and layers that are modules count, too
        at_calls = f"{CALL_SITES}.{function_name(source)}_"
        if any(at_calls in name for name in activation_quantizers(self.model)):
            raise site.refusal(
                "is called in a network with quantizers at such calls", "make it a module"
            )
        path = str(weight.target)
        path = path.rpartition(".")[0] or path
        return functional_layer(path, options, self.codes.get(id(options["weight"])), site)

    def _with_constant(self, name: str, source: fx.Node, site: Site) -> Node:
        """Arithmetic of a map and of a number, or of what the model holds."""
        if len(source.args) != 2 or source.kwargs:
            raise site.refusal("calculates with options", "leave them out, or write an operator")
        first, second = map(self._option, source.args)
        is_first = not isinstance(first, fx.Node)
        value = first if is_first else second
        if not isinstance(value, (Tensor, int, float)):
            raise site.refusal("calculates with something else than numbers of the model")
        return constant_affine(name, value, site, is_first=is_first)

    def _module(self, path: str, source: fx.Node) -> Node:
        module = self.model.get_submodule(path)
        site = self._site(source)
        if isinstance(module, QuantizedActivation):
            return Quantize(path=path, quantizer=module, **site.fields)
        if isinstance(module, LAYER_TYPES):
            return layer_node(path, module, self.codes.get(id(latent_weight(module))), site)
        return module_node(module, site)

    def _site(self, source: fx.Node) -> Site:
        place, meta = place_of(source, self.model), source.meta.get("tensor_meta")
        if not isinstance(meta, TensorMetadata):
            raise SpecError(f"{place} makes no single tensor and cannot be exported; {CURE}")
        given = _traced_in([*source.args, *source.kwargs.values()])
        inputs = [self.made[argument] for argument in given if argument in self.made]
        return Site(source.name, tuple(meta.shape[1:]), tuple(inputs), place)

    def _option(self, value: Any) -> Any:
        """An argument; tensors that the model holds are taken out of it, also in tuples."""
        return fx.node.map_arg(value, self._resolved)

    def _resolved(self, value: fx.Node) -> Any:
        if _is_left_out(value):
            return value.args[0] if value.args else None
        if not _is_constant(value):
            return value
        if value.op != "get_attr":
            args: Any = self._option(value.args)
            kwargs: Any = self._option(value.kwargs)
            if value.op == "call_method":
                return getattr(args[0], str(value.target))(*args[1:], **kwargs)
            return cast(Callable[..., Any], value.target)(*args, **kwargs)
        *owner, name = str(value.target).split(".")
        return getattr(self.model.get_submodule(".".join(owner)), name)


def _is_left_out(node: fx.Node) -> bool:
    """Whether it is an argument of the forward that nobody gives, such as attn_mask=None."""
    return node.op == "placeholder" and not isinstance(node.meta.get("tensor_meta"), TensorMetadata)


def _is_taken_apart(node: fx.Node) -> bool:
    """Whether a node makes several tensors, of which each is taken by its number."""
    return function_name(node) in ("chunk", "split") and all(
        function_name(user) == "getitem" and isinstance(user.args[1], int) for user in node.users
    )


def _is_constant(node: fx.Node) -> bool:
    """Whether it is a tensor that the model holds, or what is made of such ones alone."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "get_attr"
    return bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


def _traced_in(value: Any) -> Iterator[fx.Node]:
    """The traced nodes among arguments, also in lists; one that is given twice comes twice."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _traced_in(item)


def _needed(traced: fx.Graph) -> set[fx.Node]:
    """Nodes whose tensors reach the output; sizes, assertions and the model's own do not count."""
    wanted: set[fx.Node] = set()
    waiting = [traced.output_node()]
    while waiting:
        node = waiting.pop()
        if node in wanted:
            continue
        wanted.add(node)
        waiting += [source for source in _read_by(node) if not _is_constant(source)]
    return wanted


def _read_by(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that are tensors."""
    return node.all_input_nodes[: 1 if function_name(node) in _OF_ONE_TENSOR else None]
