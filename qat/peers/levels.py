"""Level counting: is a peer's network really on few levels?"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import NotOnGridError
from qat.peers.peer import Peer
from qat.quantize.audit import Audit, audit
from qat.quantize.modes import evaluating
from qat.quantize.plan import project_weights
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec


def counted_weights(peer: Peer, net: nn.Module) -> dict[str, Tensor]:
    """Different values of every conv and linear weight, sorted; call it inside `peer.judged`.

    Raises:
        NotOnGridError: more values than the bits allow.
    """
    return {
        name: _checked(name, torch.unique(weight), peer.weight_bits)
        for name, weight in peer.weights(net).items()
    }


def counted_activations(peer: Peer, net: nn.Module, images: Tensor) -> dict[str, int]:
    """Number of different values behind every quantized activation, in evaluation mode.

    Raises:
        NotOnGridError: more values than the bits allow.
    """
    found: dict[str, Tensor] = {}

    def counting(name: str) -> Any:
        return lambda module, args, out: found.update({name: torch.unique(out)})

    with ExitStack() as hooks, evaluating(net), torch.no_grad():
        for name, module in peer.activations(net).items():
            hooks.callback(module.register_forward_hook(counting(name)).remove)
        net(images)
    return {n: len(_checked(n, values, peer.activation_bits)) for n, values in found.items()}


def audited(peer: Peer, net: nn.Module, twin: nn.Module, example: Tensor) -> Audit:
    """The audit of a peer's network: levels and scales are counted in it, costs follow from bits.

    Args:
        peer: how it was quantized.
        net: the converted network, judged.
        twin: the float network of the same architecture; it is changed.
        example: images (N, C, H, W).

    Raises:
        NotOnGridError: a weight or an activation has more values than its bits allow.
    """
    values = counted_weights(peer, net)
    counted_activations(peer, net, example)
    spec = _same_bits(peer)
    prepare(twin, spec, example=example)
    project_weights(twin, spec)
    found = audit(twin, spec, example)
    if spec.weight.bits == 32:
        return found
    rows = tuple(
        replace(layer, levels=len(values[layer.name]), scale=_scale(values[layer.name]))
        for layer in found.layers
    )
    return replace(found, layers=rows)


def totals(found: Audit) -> Mapping[str, Any]:
    """What summary.json says of the whole network."""
    return {k: v for k, v in found.to_dict().items() if k not in ("layers", "other")}


def _checked(name: str, values: Tensor, bits: int) -> Tensor:
    if bits < 32 and len(values) > 2**bits:
        raise NotOnGridError(
            f"{name}: {len(values)} different values found where {bits} bits have {2**bits}; "
            "the package did not quantize it"
        )
    return values


def _scale(values: Tensor) -> float:
    """Step between two levels; of a binary weight the level itself."""
    return float(values.abs().max() if len(values) <= 2 else values.diff().min())


def _same_bits(peer: Peer) -> QuantSpec:
    """Our own options with the same bits at the same places: every layer, behind every ReLU."""
    is_float = peer.weight_bits == 32
    return QuantSpec(
        rule=RuleSpec(name="float_only" if is_float else "binary_connect"),
        weight=WeightSpec(bits=peer.weight_bits),  # type: ignore[arg-type]
        activation=ActivationSpec(bits=peer.activation_bits),  # type: ignore[arg-type]
    )
