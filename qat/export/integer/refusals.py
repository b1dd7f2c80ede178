"""Refusals of export: where a value is made in a traced network, and why it cannot be exported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qat.errors import SpecError
from qat.export.integer.graph import Node

CURE = (
    "export knows Conv2d, Linear, BatchNorm, the usual activation functions, max and average "
    "pooling, flatten, sums, gates and channel shuffles; take a model made of these"
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a value is made.

    Attributes:
        name: of the value.
        shape: of the value, without the batch axis.
        inputs: what it is made of.
        place: how messages call it, such as "the layer features.3 (GELU)".
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[Node, ...]
    place: str

    @property
    def fields(self) -> dict[str, Any]:
        """What every node is told."""
        inputs = tuple(node.name for node in self.inputs)
        return {"name": self.name, "shape": self.shape, "inputs": inputs}

    @property
    def before(self) -> tuple[int, ...]:
        """Shape of the first input."""
        return self.inputs[0].shape

    def refusal(self, why: str = "", cure: str = CURE) -> SpecError:
        """The error that says that this cannot be exported: why, and what to do."""
        return refusal_of(self.place, why, cure)


def refusal_of(place: str, why: str, cure: str) -> SpecError:
    """The error that says that what is made at a place cannot be exported: why, and what to do."""
    return SpecError(f"{place} {why and why + ', which '}cannot be exported; {cure}")


def check_even_levels(path: str, levels: Sequence[float]) -> None:
    """Refuse what QONNX's Quant cannot hold; two levels are BipolarQuant's.

    Args:
        path: dotted name of the layer.
        levels: of its weight's grid, ascending.

    Raises:
        SpecError: the levels are not successive integers (powers of two, DoReFa).
    """
    if len(levels) > 2 and tuple(levels) != tuple(range(int(levels[0]), int(levels[-1]) + 1)):
        raise SpecError(
            f"the levels of {path} are not evenly spaced, which QONNX's Quant needs; "
            "export format=onnx, or train with grid binary, ternary or uniform"
        )


def same(site: Site) -> Node:
    """The first input itself, for what changes nothing."""
    return site.inputs[0]


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a traced node calls, "" for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        target: Any = node.target
        # the same name as that of torch.nn.functional, but its arguments in another order
        if target is torch.batch_norm:
            return "torch.batch_norm"
        return str(getattr(target, "__name__", target))
    return ""


def place_of(node: fx.Node, model: nn.Module) -> str:
    """How messages call a traced node of a model."""
    if node.op == "call_module":
        kind = type(model.get_submodule(str(node.target))).__name__
        return f"the layer {node.target} ({kind})"
    stack = list(node.meta.get("nn_module_stack") or {})
    inside = f" in {stack[-1]}" if stack and stack[-1] else ""
    if not function_name(node):
        return f"the tensor {node.target}{inside}"
    return f"the function {function_name(node)}{inside}"
