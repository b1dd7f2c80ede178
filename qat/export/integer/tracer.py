"""Symbols of a network's tensors: what torch.fx records where quantizers stand and maps change."""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qat.errors import SpecError
from qat.export.integer.refusals import place_of, refusal_of
from qat.nn.activation import QuantizedActivation
from qat.quantize.activations import INPUT_QUANTIZER
from qat.quantize.call_sites import CALL_SITES

# what turns a tensor's values into plain numbers, on which no exported network may decide
_READING = ("item", "tolist", "equal", "allclose", "is_nonzero")


class _Value(fx.Proxy):
    """A symbol that knows what changes it: for those of torch.fx, y += x is y = y + x.

    What is assigned to, by index or to `.data`, has no symbol and is refused.
    """

    def __setitem__(self, index: Any, value: Any) -> None:
        raise self._refusal("index", "make a new tensor of the parts, by torch.cat or torch.where")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            raise self._refusal(".data", "let the forward make a new tensor, and read that one")
        super().__setattr__(name, value)

    def _refusal(self, way: str, cure: str) -> SpecError:
        place = place_of(self.node, cast(fx.Tracer, self.tracer).root)
        return refusal_of(f"what {place} makes", f"is assigned to by {way}", cure)


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def traced(self: fx.Proxy, other: Any) -> fx.Proxy:
        # under the name of the plain operator, as files name their values by it
        name = function.__name__.removeprefix("i")
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return traced


def _as_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of tensors as the function that it is, which quantizers at calls stand behind."""

    def called(self: fx.Proxy, *args: Any) -> Any:
        return function(self, *args)

    return called


for _name, _function in {
    "relu": torch.relu,
    "relu_": torch.relu_,
    "__matmul__": torch.matmul,
    **{name: getattr(torch, name) for name in ("matmul", "mm", "bmm")},
}.items():
    setattr(_Value, _name, _as_function(_function))

for _name in (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
):
    setattr(_Value, f"__{_name}__", _in_place(getattr(operator, _name)))


class NetworkTracer(fx.Tracer):
    """Keeps activation quantizers whole, sees the ones on the inputs of layers, decides by shapes.

    Args:
        example: images (N, C, H, W). A condition on shapes is decided as it is for these, for an
            exported network takes images of this size only.
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._is_evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Quantizers are leaves, as torch's own modules are that have none at their calls."""
        if isinstance(m, QuantizedActivation):
            return True
        if CALL_SITES in m._modules:
            return False
        return bool(super().is_leaf_module(m, module_qualified_name))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The symbol of a traced node."""
        return _Value(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Calls the quantizer on a layer's input first: tracing passes hooks by."""
        if self._is_evaluating:
            return forward(*args, **kwargs)
        quantizer = dict(m.named_children()).get(INPUT_QUANTIZER)
        if quantizer is not None:
            if args:
                args = (quantizer(args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "input": quantizer(kwargs["input"])}
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters are symbols, but not while a condition is decided."""
        if self._is_evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition that depends on shapes only; TraceError for one on values of tensors."""
        value = None if _reads_values(obj.node) else self._evaluated(obj.node)
        return value if isinstance(value, bool) else bool(super().to_bool(obj))

    def _evaluated(self, node: fx.Node) -> Any:
        """What a traced node is for the example."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for earlier in self.graph.nodes:
            copies[earlier] = graph.node_copy(earlier, copies.__getitem__)
        graph.output(copies[node])
        self._is_evaluating = True
        try:
            return fx.Interpreter(self.root, graph=graph).run(self._example)
        finally:
            self._is_evaluating = False


def _reads_values(node: fx.Node) -> bool:
    """Whether a plain number taken out of a tensor is behind this node."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    names = (getattr(n.target, "__name__", n.target) for n in seen if n.op.startswith("call_"))
    return any(name in _READING for name in names)
