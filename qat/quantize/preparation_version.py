"""Version of a preparation: the earliest one that makes the same of a network.

Version 1 asked modules by their types: it put quantizers in the place of ReLU modules, signed ones
before conv and linear layers, and projected the weights of these. Version 2 asks what enters the
products. Of a network of convolutions, linear layers, ReLUs and norms both make the same.
"""

from typing import Any

from torch import nn

from qat.errors import CheckpointError
from qat.quantize.plan import Plan
from qat.quantize.weights import LAYER_TYPES
from qat.spec.quant import FLOAT_BITS

PREPARATION = 2
_DIFFERENCE = "_qat_preparation"  # attribute of a prepared network


def difference_in_weights(model: nn.Module, plan: Plan) -> str:
    """In which weight a plan differs from that of version 1, in words; "" if in none.

    Version 1 knew conv and linear layers, took the first and the last by registration for the ends,
    and left float what a class with "Std" in its name holds.

    Args:
        model: float network.
        plan: its plan.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYER_TYPES)}
    standardised = {n for n, m in layers.items() if "Std" in type(m).__name__}
    ends = {"first": list(layers)[:1], "last": list(layers)[-1:]}
    for name, weight in plan.weights.items():
        bits = plan.bits_by_name(name, [end for end, names in ends.items() if name in names])
        before = bits if name in layers and name not in standardised else FLOAT_BITS
        if weight.is_made and weight.spec.is_quantized:
            return f"put what the weight of {name} is made of on a grid, or nothing"
        if before != weight.spec.bits and not weight.is_shared:
            return f"gave the weight {name} {_in_words(before)}"
    return ""


def _in_words(bits: int) -> str:
    return "no levels" if bits == FLOAT_BITS else f"{bits} bits"


def keep_difference(model: nn.Module, difference: str) -> None:
    """Let a network remember in what version 1 would have prepared it otherwise, "" for nothing."""
    setattr(model, _DIFFERENCE, difference)


def preparation_of(model: nn.Module) -> int:
    """The earliest version that prepares a network as this one is."""
    return PREPARATION if getattr(model, _DIFFERENCE, "") else 1


def check_preparation(model: nn.Module, version: Any) -> None:
    """Refuse what another version of the preparation has made otherwise.

    Args:
        model: prepared network.
        version: that the run, checkpoint or file tells; 1 where it tells none.

    Raises:
        CheckpointError: it would be opened as another network.
    """
    if version == preparation_of(model):
        return
    if version == 1:
        raise CheckpointError(
            "it was prepared by an earlier version of qat, which "
            f"{getattr(model, _DIFFERENCE)}; open it with that version, or train it again"
        )
    if version == PREPARATION:
        raise CheckpointError(
            f"it was prepared as version {version} of the preparation does, by what an example has "
            "shown, and this network as version 1 does"
        )
    raise CheckpointError(
        f"it was prepared by version {version!r:.20} of the preparation, this qat knows "
        f"1..{PREPARATION}; use a newer one"
    )
