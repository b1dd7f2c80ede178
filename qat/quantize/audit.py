"""Audit of a network: what is quantized, on which levels, fed by what, at what cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from qat.nn.parametrization import WeightParametrization
from qat.quantize.audit_weights import AuditedWeight, audited_weights, identity, reached_weights
from qat.quantize.picture import Picture, Product
from qat.quantize.plan import Plan, WeightPlan, resolve
from qat.quantize.products import Observed, trace
from qat.quantize.reach import Reach, known_reach
from qat.quantize.values import Value
from qat.quantize.weights import CONV_TYPES, LAYER_TYPES, TRANSPOSED_TYPES, latent_weight, unwrapped
from qat.spec.quant import FLOAT_BITS, QuantSpec

# ACE counts floats as bfloat16, the narrowest float that trains and runs without loss
_ACE_FLOAT_BITS = 16


_INPUT_REASONS = {
    "image": "network input; set quant.input_bits to quantize it",
    "pooled": "average of quantized values",
    "float": "no quantizer on its way",
    "constant": "a constant",
    "weight": "made of parameters alone",
    "quantized": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAudit:
    """One place of the network where it multiplies: by a weight, or two activations.

    Of a place whose calls have different inputs, the costs are sums over the calls, and the input
    is described by the most bits.

    Attributes:
        name: dotted module name; of a weight that is no layer's own, the parameter's; of a product
            of activations, that of the module and the function.
        weights: number of weights, 0 for a product of activations.
        weight_bits: 1..8, or 32; for a product of activations, of its second operand.
        grid: name of the grid, "" if float.
        levels: largest number of different values found in a scale group.
        scale: mean over the scale groups of largest |weight| / largest level.
        source: what feeds it: image, quantized, pooled, constant or float.
        input_bits: bits of that input (32 unless quantized).
        macs: multiply-accumulates per image.
        reason: why the weight is float, "" if it is not.
        input_reason: why the input is float, or holds more values than its bits say; else "".
        bops: bit operations per image, MACs * weight bits * input bits, floats 32.
        ace: the same with floats as 16 bits.
        macs_on_grids: those of the MACs whose operands both hold few levels.
        input_signed: whether half of the input's levels are negative.
        function: torch function that multiplies.
    """

    name: str
    weights: int
    weight_bits: int
    grid: str
    levels: int
    scale: float
    source: str
    input_bits: int
    macs: int
    reason: str
    input_reason: str
    bops: int = 0
    ace: int = 0
    macs_on_grids: int = 0
    input_signed: bool = False
    function: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All products of a network and its totals.

    Products are those that `qat.quantize.products.trace` finds: convolutions and matrix products,
    by whatever module or function, of weights and of activations; not those element by element.

    Attributes:
        layers: what multiplies, in the order of execution; weights that the example did not reach
            come last, without work.
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
    entering: dict[str, Tensor] = {}

    def keep(product: Observed) -> None:
        is_made = product.weight is not None and product.weight.through != ""
        if product.module in reach.made and is_made and product.weight_tensor is not None:
            entering[product.module] = product.weight_tensor.detach()

    picture = trace(model, example, watch=keep)
    weights = audited_weights(model, plans, picture, reach, entering)
    layers = tuple(_layers(model, weights, picture, reach))
    # a tied weight is stored once, as its first layer's
    shared = {name for name, plan in plans.items() if plan.is_shared}
    stored = {name: weight for name, weight in weights.items() if name not in shared}
    total = sum(weight.count for weight in stored.values())
    weight_bits = sum(weight.count * weight.bits for weight in stored.values())
    elements = _elements(model, reach)
    scales = sum(weight.scale_groups for weight in stored.values() if weight.grid)
    macs = sum(layer.macs for layer in layers)
    return Audit(
        layers=layers,
        other=_other_parameters(model, plans, reach),
        bits=weight_bits / max(1, total),
        quantized_share=_share_on_grids(
            model, stored, reached_weights(model, picture, reach), reach
        ),
        product_share=sum(layer.macs_on_grids for layer in layers) / max(1, macs),
        bytes=(weight_bits + 7) // 8 + 4 * (elements - total + scales),
        float_bytes=4 * elements,
        macs=macs,
        bops=sum(layer.bops for layer in layers),
        ace=sum(layer.ace for layer in layers),
    )


def _layers(
    model: nn.Module, weights: Mapping[str, AuditedWeight], picture: Picture, reach: Reach
) -> Iterator[LayerAudit]:
    """A row for each place that multiplies, then those that the example did not reach."""
    places: dict[tuple[str, str], list[Product]] = {}
    for product in picture.products:
        places.setdefault(_row_name(model, product, reach), []).append(product)
    modules = dict(model.named_modules())
    for (name, _), products in places.items():
        yield _row(name, modules[products[0].module], weights, products, reach)
    reached = reached_weights(model, picture, reach)
    for name, weight in weights.items():
        if identity(model, name, reach) not in reached:
            yield _unreached(name, weight)


def _share_on_grids(
    model: nn.Module, stored: Mapping[str, AuditedWeight], reached: set[object], reach: Reach
) -> float:
    own = [w for name, w in stored.items() if identity(model, name, reach) in reached]
    return sum(w.count for w in own if w.grid) / max(1, sum(w.count for w in own))


def _row_name(model: nn.Module, product: Product, reach: Reach) -> tuple[str, str]:
    """What a product is called, and what keeps it apart from others of the same name."""
    names = reach.names(product)
    if product.weight is None or not names:
        return f"{product.module}.{product.function}".lstrip("."), "activations"
    # a layer that shares its weight with an earlier one has a row of its own
    module = model.get_submodule(product.module)
    is_layer = isinstance(module, (*LAYER_TYPES, *TRANSPOSED_TYPES)) and len(names) == 1
    return (product.module if is_layer else ", ".join(names)), "weight"


def _row(
    name: str,
    module: nn.Module,
    weights: Mapping[str, AuditedWeight],
    products: list[Product],
    reach: Reach,
) -> LayerAudit:
    first = products[0]
    source = _source([product.inputs[0] for product in products])
    names = reach.names(first)
    is_plain = len(names) == 1 and bool(
        not first.weight or not first.weight.through or names[0] in reach.made
    )
    bits = weights[names[0]].bits if names and is_plain else FLOAT_BITS
    common: dict[str, Any] = {
        "name": name,
        "source": source.kind,
        "input_bits": _bits(source),
        "input_signed": source.kind == "quantized" and source.signed,
        "macs": sum(product.macs for product in products),
        "function": first.function,
        **_costs(products, bits if names else None),
    }
    if first.weight is None or not names:
        other = _source([p.inputs[1] if p.weight is None else p.weight for p in products])
        is_quantized = other.kind == "quantized"
        reason = "two activations" if first.weight is None else "no parameter: a constant"
        if other.kind == "weight":
            reason = "makes a weight, and multiplies no image"
        if first.weight is not None and other.is_of_image:
            reason = "made of the image"
        return LayerAudit(
            weights=0,
            weight_bits=other.bits if is_quantized else FLOAT_BITS,
            grid="",
            levels=0,
            scale=0.0,
            reason="" if is_quantized else reason,
            input_reason=_input_reason(module, source, first),
            **common,
        )
    own = [weights[n] for n in names]
    return LayerAudit(
        weights=sum(weight.count for weight in own),
        weight_bits=own[0].bits if is_plain else FLOAT_BITS,
        grid=own[0].grid if is_plain else "",
        levels=own[0].levels if is_plain else 0,
        scale=own[0].scale if is_plain else 0.0,
        reason=own[0].reason,
        input_reason=_input_reason(module, source, first),
        **common,
    )


def _costs(products: list[Product], weight_bits: int | None) -> dict[str, int]:
    """Costs of one place, call by call; `weight_bits` None where both operands are activations."""
    bops = ace = on_grids = 0
    for product in products:
        other = product.inputs[1] if product.weight is None else product.weight
        one, two = _bits(product.inputs[0]), _bits(other) if weight_bits is None else weight_bits
        bops += product.macs * one * two
        ace += product.macs * min(one, _ACE_FLOAT_BITS) * min(two, _ACE_FLOAT_BITS)
        on_grids += product.macs if max(one, two) < FLOAT_BITS else 0
    return {"bops": bops, "ace": ace, "macs_on_grids": on_grids}


def _bits(value: Value) -> int:
    """Bits of an activation."""
    return value.bits if value.kind == "quantized" else FLOAT_BITS


def _source(values: list[Value]) -> Value:
    """What feeds all calls of one place; float if some of it is."""
    if {value.kind for value in values} == {"quantized"}:
        most = max(values, key=lambda value: value.bits)
        has_zero = all(value.has_zero for value in values)
        return replace(most, signed=any(v.signed for v in values), has_zero=has_zero)
    kinds = {value.kind for value in values}
    return values[0] if len(kinds) == 1 else Value("float")


def _unreached(name: str, weight: AuditedWeight) -> LayerAudit:
    return LayerAudit(
        name=name,
        weights=weight.count,
        weight_bits=weight.bits,
        grid=weight.grid,
        levels=weight.levels,
        scale=weight.scale,
        source="float",
        input_bits=FLOAT_BITS,
        macs=0,
        reason=weight.reason,
        input_reason="not reached by the example",
    )


def _input_reason(module: nn.Module, source: Value, product: Product) -> str:
    if source.kind == "quantized" and not source.has_zero and _pads_zeros(module):
        return "zero padding adds a third value to the signs"
    if source.kind == "float" and product.weight is None:
        return "products of activations stay float"
    if source.kind in ("float", "constant") and product.place is None:
        return f"inside {product.function}, which takes no quantizer"
    return _INPUT_REASONS[source.kind]


def _pads_zeros(module: nn.Module) -> bool:
    if not isinstance(module, CONV_TYPES) or module.padding_mode != "zeros":
        return False
    return isinstance(module.padding, str) or any(module.padding)


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
    parts = {n: parameters[n].numel() for made in reach.made.values() for n in made.parameters}
    made = sum(math.prod(weight.shape) for weight in reach.made.values())
    return floats - sum(t.numel() for t in scales) - sum(parts.values()) + made


def _other_parameters(
    model: nn.Module, plans: Mapping[str, WeightPlan], reach: Reach
) -> dict[str, tuple[int, str]]:
    """Parameters that are no weight of a product."""
    weights = {id(latent_weight(model, name)) for name, plan in plans.items() if not plan.is_made}
    parts = {name for made in reach.made.values() for name in made.parameters}
    other: dict[str, tuple[int, str]] = {}
    for name, p in model.named_parameters():
        if id(p) in weights or name in parts:
            continue
        reason = "bias, normalisation or step" if p.ndim <= 1 else "no weight of a product"
        key = "vectors" if p.ndim <= 1 else name
        count = other.get(key, (0, ""))[0]
        other[key] = (count + p.numel(), reason)
    return other
