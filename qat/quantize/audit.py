"""Audit of a network: what is quantized, on which levels, fed by what, at what cost."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import NotOnGridError
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.plan import Plan, WeightPlan, quantizer_for, resolve
from qat.quantize.products import Picture, Product, Value, trace
from qat.quantize.weights import (
    CONV_TYPES,
    current_weight,
    latent_weight,
    weight_name,
    weight_parametrizations,
)
from qat.spec.quant import FLOAT_BITS, QuantSpec, WeightSpec

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
    input_signed: bool = False
    function: str = ""

    @property
    def bops(self) -> int:
        """Bit operations per image: MACs * weight bits * input bits."""
        return self.macs * self.weight_bits * self.input_bits

    @property
    def is_on_grids(self) -> bool:
        """Whether both operands hold few levels."""
        return self.weight_bits < FLOAT_BITS and self.input_bits < FLOAT_BITS


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
        quantized_share: share of the weights that lie on a grid and enter every product as they
            are, 0..1.
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
    plans = resolve(model, spec).weights
    picture = trace(model, example)
    weights = _checked(model, plans, picture)
    layers = tuple(_layers(model, weights, picture))
    # a tied weight is stored once, as its first layer's
    stored = [weights[name] for name, plan in plans.items() if not plan.is_shared]
    total = sum(weight.count for weight in stored)
    on_grid = [weight for weight in stored if weight.grid]
    weight_bits = sum(weight.count * weight.bits for weight in stored)
    elements = _elements(model)
    scales = sum(weight.scale_groups for weight in on_grid)
    macs = sum(layer.macs for layer in layers)
    return Audit(
        layers=layers,
        other=_other_parameters(model, plans),
        bits=weight_bits / max(1, total),
        quantized_share=sum(weight.count for weight in on_grid) / max(1, total),
        product_share=sum(layer.macs for layer in layers if layer.is_on_grids) / max(1, macs),
        bytes=(weight_bits + 7) // 8 + 4 * (elements - total + scales),
        float_bytes=4 * elements,
        macs=macs,
        bops=sum(layer.bops for layer in layers),
        ace=sum(
            layer.macs * min(layer.weight_bits, _ACE_FLOAT_BITS) * min(layer.input_bits, 16)
            for layer in layers
        ),
    )


def check_on_grid(
    name: str, weight: Tensor, quantizer: WeightQuantizer | WeightParametrization
) -> tuple[int, float]:
    """Number of different values per scale group (the largest) and mean scale of a hard weight.

    Raises:
        NotOnGridError: more values than levels, or a value that is no level times the scale.
    """
    rows = weight.detach().flatten(1) if quantizer.granularity == "channel" else weight.detach()
    rows = rows.reshape(rows.shape[0] if quantizer.granularity == "channel" else 1, -1)
    grid = torch.tensor(quantizer.levels, dtype=torch.float64)
    most = 0
    scales: list[float] = []
    for row in rows:
        values = torch.unique(row).double().cpu()
        scale = _fitting_scale(values, grid)
        if len(values) > len(grid) or scale is None:
            raise NotOnGridError(
                f"{name}: {len(values)} different values found where the {quantizer.kind} grid of "
                f"{quantizer.bits} bits has {len(grid)} levels; the weight is not on its grid. "
                "QuantOptimizer puts it there by each step (a rule that relaxes: inside its "
                "hard_weights()), or do p.copy_(q(p)) for p, q in weight_projections(...).items()"
            )
        most = max(most, len(values))
        scales.append(scale)
    return most, sum(scales) / len(scales)


def _fitting_scale(values: Tensor, grid: Tensor) -> float | None:
    """The scale s with every value in s * grid (relative tolerance 1e-5), or None."""
    largest = float(values.abs().max())
    if largest == 0:
        return 0.0
    # the largest level itself may be unused; on a grid that is not symmetric it is negative
    for level in sorted({abs(float(k)) for k in grid if k != 0}, reverse=True):
        scale = largest / level
        nearest = grid[torch.bucketize(values / scale, (grid[1:] + grid[:-1]) / 2)]
        distance = (values / scale - nearest).abs()
        if float(distance.max()) <= 1e-5 * max(1.0, float(grid.max())):
            return scale
    return None


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight as it was found: number of entries, bits, grid, levels, scale, why float."""

    count: int
    bits: int
    grid: str
    levels: int
    scale: float
    scale_groups: int
    reason: str


def _checked(
    model: nn.Module, plans: Mapping[str, WeightPlan], picture: Picture
) -> dict[str, _Weight]:
    """Every weight by name, held against its grid and against the products it enters."""
    changed = {
        weight_name(parameter): product.weight.through
        for product in picture.products
        if product.weight is not None and product.weight.through
        for parameter in product.weight.parameters
    }
    found: dict[int, _Weight] = {}
    weights: dict[str, _Weight] = {}
    for name, plan in plans.items():
        parameter = latent_weight(model, name)
        if id(parameter) not in found:
            reason = plan.reason
            if plan.spec.is_quantized and name in changed:
                reason = f"{changed[name]} makes the weight of it"
            spec = WeightSpec(bits=32) if reason else plan.spec
            found[id(parameter)] = _weight(model, name, spec, reason)
        weights[name] = found[id(parameter)]
    return weights


def _weight(model: nn.Module, name: str, spec: WeightSpec, reason: str) -> _Weight:
    weight = latent_weight(model, name) if reason else current_weight(model, name)
    count = weight.numel()
    if not spec.is_quantized:
        size = float(weight.detach().abs().mean())
        return _Weight(count, spec.bits, "", len(torch.unique(weight)), size, 0, reason)
    quantizer = quantizer_for(model, name, spec)
    levels, scale = check_on_grid(name, weight, quantizer)
    groups = weight.shape[0] if spec.granularity == "channel" else 1
    return _Weight(count, spec.bits, str(quantizer.kind), levels, scale, groups, "")


def _layers(
    model: nn.Module, weights: Mapping[str, _Weight], picture: Picture
) -> Iterator[LayerAudit]:
    """A row for each place that multiplies, then those that the example did not reach."""
    places: dict[tuple[str, str], list[Product]] = {}
    reached = set()
    for product in picture.products:
        places.setdefault(_row_name(model, product), []).append(product)
        reached |= set(_names(product))
    modules = dict(model.named_modules())
    for (name, _), products in places.items():
        yield _row(name, modules[products[0].module], weights, products)
    for name, weight in weights.items():
        if name not in reached and weight not in [weights[other] for other in reached]:
            yield _unreached(name, weight)


def _names(product: Product) -> list[str]:
    """Names of the weights behind an operand."""
    parameters = () if product.weight is None else product.weight.parameters
    return sorted(map(weight_name, parameters))


def _row_name(model: nn.Module, product: Product) -> tuple[str, str]:
    """What a product is called, and what keeps it apart from others of the same name."""
    names = _names(product)
    if product.weight is None or not names:
        return f"{product.module}.{product.function}".lstrip("."), "activations"
    # a layer that shares its weight with an earlier one has a row of its own
    own = dict(model.get_submodule(product.module).named_parameters(recurse=False))
    is_layer = "weight" in own and len(names) == 1
    return (product.module if is_layer else ", ".join(names)), "weight"


def _row(
    name: str, module: nn.Module, weights: Mapping[str, _Weight], products: list[Product]
) -> LayerAudit:
    first = products[0]
    source = _source([product.inputs[0] for product in products])
    macs = sum(product.macs for product in products)
    common: dict[str, Any] = {
        "name": name,
        "source": source.kind,
        "input_bits": source.bits if source.kind == "quantized" else FLOAT_BITS,
        "input_signed": source.kind == "quantized" and source.signed,
        "macs": macs,
        "function": first.function,
    }
    names = _names(first)
    if first.weight is None or not names:
        other = _source([p.inputs[1] if p.weight is None else p.weight for p in products])
        is_quantized = other.kind == "quantized"
        reason = "two activations" if first.weight is None else "no parameter: a constant"
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
    is_plain = len(own) == 1 and not first.weight.through
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


def _source(values: list[Value]) -> Value:
    """What feeds all calls of one place; float if it is not the same for all."""
    alike = {(value.kind, value.bits, value.signed) for value in values}
    return values[0] if len(alike) == 1 else Value("float")


def _unreached(name: str, weight: _Weight) -> LayerAudit:
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


def _elements(model: nn.Module) -> int:
    """Parameters and statistics of a state dict; scales of in-graph weights are counted apart."""
    every: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        passing = module._non_persistent_buffers_set
        kept = {n: b for n, b in module.named_buffers(recurse=False) if n not in passing}
        every |= {id(buffer): buffer for buffer in kept.values()}
    scales = [t for _, w in weight_parametrizations(model) for t in (*w.parameters(), *w.buffers())]
    floats = sum(t.numel() for t in every.values() if t.is_floating_point())
    return floats - sum(t.numel() for t in scales)


def _other_parameters(
    model: nn.Module, plans: Mapping[str, WeightPlan]
) -> dict[str, tuple[int, str]]:
    """Parameters that are no weight of a product."""
    weights = {id(latent_weight(model, name)) for name in plans}
    other: dict[str, tuple[int, str]] = {}
    for name, p in model.named_parameters():
        if id(p) in weights:
            continue
        reason = "bias, normalisation or step" if p.ndim <= 1 else "no weight of a product"
        key = "vectors" if p.ndim <= 1 else name
        count = other.get(key, (0, ""))[0]
        other[key] = (count + p.numel(), reason)
    return other
