"""Audit of a network: what is quantized, on which levels, fed by what, at what cost."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from qat.nn.parametrization import WeightParametrization
from qat.quantize.audit_products import LayerAudit, audited_products
from qat.quantize.audit_weights import audited_weights, identity, reached_weights
from qat.quantize.made_weights import EnteringWeights
from qat.quantize.plan import Plan, WeightPlan, resolve
from qat.quantize.products import trace
from qat.quantize.reach import Reach, known_reach
from qat.quantize.weights import latent_weight, unwrapped
from qat.spec.quant import QuantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All products of a network and its totals.

    Products are those that `qat.quantize.products.trace` finds: convolutions and matrix products,
    by whatever module or function, of weights and of activations; not those element by element.

    Attributes:
        layers: what multiplies, in the order of execution; weights that make no product, as the
            example did not reach them, come last, without work.
        other: parameters that are no weight of a product -> (number, why float).
        bits: mean bits per weight.
        quantized_share: share of the weights that enter products which lie on a grid and enter
            every product as they are, 0..1; what the example did not reach is left out.
        product_share: share of the multiplications that have both operands on grids, 0..1.
        bytes: size of all weights packed at their bits, scales and float residue at 4 bytes.
        float_bytes: size of all parameters and statistics at 4 bytes.
        macs: multiply-accumulates per image.
        bops: bit operations per image, sum of MACs * weight bits * input bits, floats 32.
        ace: arithmetic computation effort per image, the same sum with floats as 16 bits.

    Source: BOPs in the short form used by HAWQ-V3; ACE of arXiv:2112.00133.
    """

    layers: tuple[LayerAudit, ...]
    other: dict[str, tuple[int, str]]
    bits: float
    quantized_share: float
    product_share: float
    bytes: int
    float_bytes: int
    macs: int
    bops: int
    ace: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for summary.json."""
        return asdict(self)


def audit(model: nn.Module, spec: QuantSpec | Plan, example: Tensor) -> Audit:
    """Audit a prepared network whose parameters hold hard weights.

    Args:
        model: prepared network, with Q(w) in its parameters.
        spec: the options it was prepared with, or its plan.
        example: images (N, C, H, W) for one forward pass.

    Raises:
        NotOnGridError: a weight that should be on its grid holds another value.
    """
    plan, model = resolve(model, spec), unwrapped(model)
    plans, reach = plan.weights, known_reach(model) or Reach()
    entering = EnteringWeights(reach.made)
    picture = trace(model, example, watch=entering)
    weights = audited_weights(model, plans, picture, reach, entering.found)
    entered = reached_weights(model, picture, reach)
    reached = {name for name in weights if identity(model, name, reach) in entered}
    layers = tuple(audited_products(model, weights, picture, reach, reached))
    # a tied weight is stored once, as its first layer's
    shared = {name for name, plan in plans.items() if plan.is_shared}
    stored = {name: weight for name, weight in weights.items() if name not in shared}
    total = sum(weight.count for weight in stored.values())
    own = [weight for name, weight in stored.items() if name in reached]
    weight_bits = sum(weight.count * weight.bits for weight in stored.values())
    elements = _elements(model, reach)
    scales = sum(weight.scale_groups for weight in stored.values() if weight.grid)
    macs = sum(layer.macs for layer in layers)
    return Audit(
        layers=layers,
        other=_other_parameters(model, plans, reach),
        bits=weight_bits / max(1, total),
        quantized_share=sum(w.count for w in own if w.grid) / max(1, sum(w.count for w in own)),
        product_share=sum(layer.macs_on_grids for layer in layers) / max(1, macs),
        bytes=(weight_bits + 7) // 8 + 4 * (elements - total + scales),
        float_bytes=4 * elements,
        macs=macs,
        bops=sum(layer.bops for layer in layers),
        ace=sum(layer.ace for layer in layers),
    )


def _elements(model: nn.Module, reach: Reach) -> int:
    """Parameters and statistics of a state dict; scales of in-graph weights are counted apart.

    Of a weight that is made, the weight counts and not what it is made of.
    """
    every: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        passing = module._non_persistent_buffers_set
        kept = {n: b for n, b in module.named_buffers(recurse=False) if n not in passing}
        every |= {id(buffer): buffer for buffer in kept.values()}
    quantizers = [m for m in model.modules() if isinstance(m, WeightParametrization)]
    scales = [
        t for quantizer in quantizers for t in (*quantizer.parameters(), *quantizer.buffers())
    ]
    floats = sum(t.numel() for t in every.values() if t.is_floating_point())
    parameters = dict(model.named_parameters())
    parts = {n: parameters[n].numel() for made in reach.made.values() for n in made.own}
    made = sum(math.prod(weight.shape) for weight in reach.made.values())
    return floats - sum(t.numel() for t in scales) - sum(parts.values()) + made


def _other_parameters(
    model: nn.Module, plans: Mapping[str, WeightPlan], reach: Reach
) -> dict[str, tuple[int, str]]:
    """Parameters that are no weight of a product."""
    weights = {id(latent_weight(model, name)) for name, plan in plans.items() if not plan.is_made}
    parts = {name for made in reach.made.values() for name in made.own}
    other: dict[str, tuple[int, str]] = {}
    for name, p in model.named_parameters():
        if id(p) in weights or name in parts:
            continue
        reason = "bias, normalisation or step" if p.ndim <= 1 else "no weight of a product"
        key = "vectors" if p.ndim <= 1 else name
        count = other.get(key, (0, ""))[0]
        other[key] = (count + p.numel(), reason)
    return other
