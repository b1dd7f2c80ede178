"""Symbolic tracing of a prepared network whose images have one size."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from qat.nn.activation import QuantizedActivation
from qat.surgery import INPUT_QUANTIZER

# what turns a tensor's values into plain numbers, on which no exported network may decide
_READING = ("item", "tolist", "equal", "allclose", "is_nonzero")


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
        """Quantizers are leaves, as torch's own modules are."""
        if isinstance(m, QuantizedActivation):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Calls the quantizer on a layer's input first: tracing passes hooks by."""
        if self._is_evaluating:
            return forward(*args, **kwargs)
        quantizer = dict(m.named_children()).get(INPUT_QUANTIZER)
        if quantizer is not None:
            args = (quantizer(args[0]), *args[1:])
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
