"""Products of an audit: a row for each place of the network that multiplies, with its costs."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from qat.quantize.audit_weights import AuditedWeight, identity
from qat.quantize.picture import Picture, Product
from qat.quantize.reach import Reach
from qat.quantize.values import Value
from qat.quantize.weights import CONV_TYPES, LAYER_TYPES, TRANSPOSED_TYPES
from qat.spec.quant import FLOAT_BITS

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


def audited_products(
    model: nn.Module,
    weights: Mapping[str, AuditedWeight],
    picture: Picture,
    reach: Reach,
    reached: Collection[str],
) -> Iterator[LayerAudit]:
    """A row for each place that multiplies, then those of weights that no product is made by.

    These are what the example did not reach, and what is an input, or mixed into a weight.
    """
    places: dict[tuple[str, str], list[Product]] = {}
    for product in picture.products:
        places.setdefault(_row_name(model, product, reach), []).append(product)
    modules = dict(model.named_modules())
    for (name, _), products in places.items():
        yield _row(name, modules[products[0].module], weights, products, reach)
    shown = {identity(model, n, reach) for p in picture.products for n in reach.names(p)}
    for name, weight in weights.items():
        if identity(model, name, reach) not in shown:
            yield _layer(
                name,
                weight,
                source="float",
                input_bits=FLOAT_BITS,
                macs=0,
                input_reason="" if name in reached else "not reached by the example",
            )


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
    if names:
        is_made_elsewhere = first.has_made_weight and names[0] not in reach.made
        other = _together([weights[name] for name in names], is_made_elsewhere)
    else:
        other = _of_activations(products)
    return _layer(
        name,
        other,
        source=source.kind,
        input_bits=_bits(source),
        macs=sum(product.macs for product in products),
        input_reason=_input_reason(module, source, first),
        input_signed=source.kind == "quantized" and source.signed,
        function=first.function,
        **_costs(products, other.bits if names else None),
    )


def _layer(name: str, weight: AuditedWeight, **rest: Any) -> LayerAudit:
    return LayerAudit(
        name=name,
        weights=weight.count,
        weight_bits=weight.bits,
        grid=weight.grid,
        levels=weight.levels,
        scale=weight.scale,
        reason=weight.reason,
        **rest,
    )


def _together(weights: list[AuditedWeight], is_made: bool) -> AuditedWeight:
    """The weight of a product: it has levels if it is one, as it is."""
    if len(weights) == 1 and not is_made:
        return weights[0]
    count = sum(weight.count for weight in weights)
    return AuditedWeight(count, FLOAT_BITS, "", 0, 0.0, 0, weights[0].reason)


def _of_activations(products: list[Product]) -> AuditedWeight:
    """The second operand of a product by which no weight of the network enters."""
    other = _source([p.inputs[1] if p.weight is None else p.weight for p in products])
    if other.kind == "quantized":
        reason = ""
    elif other.kind == "weight":
        reason = "makes a weight, and multiplies no image"
    elif products[0].weight is None:
        reason = "two activations"
    else:
        reason = "made of the image" if other.is_of_image else "no parameter: a constant"
    return AuditedWeight(0, _bits(other), "", 0, 0.0, 0, reason)


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
