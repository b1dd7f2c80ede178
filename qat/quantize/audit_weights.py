"""Weights of an audit: each held against its grid, and against the products it enters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat.errors import NotOnGridError
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.made_weights import made_quantizer
from qat.quantize.names import weight_name
from qat.quantize.picture import Picture
from qat.quantize.plan import WeightPlan, quantizer_for
from qat.quantize.reach import Reach
from qat.quantize.weights import current_weight, latent_weight
from qat.spec.quant import FLOAT_BITS, WeightSpec


@dataclass(frozen=True, slots=True)
class AuditedWeight:
    """A weight as it was found: number of entries, bits, grid, levels, scale, why float."""

    count: int
    bits: int
    grid: str
    levels: int
    scale: float
    scale_groups: int
    reason: str


def audited_weights(
    model: nn.Module,
    plans: Mapping[str, WeightPlan],
    picture: Picture,
    reach: Reach,
    entering: Mapping[str, Tensor],
) -> dict[str, AuditedWeight]:
    """Every weight by name, held against its grid and against the products it enters."""
    changed = {
        weight_name(parameter): product.weight.through
        for product in picture.products
        if product.weight is not None and product.has_made_weight
        for parameter in product.weight.parameters
    }
    quantized = {
        name
        for product in picture.products
        if product.weight is not None and product.weight.bits < FLOAT_BITS
        for name in reach.names(product)
    }
    found: dict[int, AuditedWeight] = {}
    weights: dict[str, AuditedWeight] = {}
    for name, plan in plans.items():
        if plan.is_made:
            made, reason = reach.made[name], plan.reason
            if not reason and name not in quantized:
                reason = f"{made.through} makes the weight of it"
            spec = WeightSpec(bits=32) if reason else plan.spec
            weights[name] = _made(model, name, spec, reason, entering.get(name), made.shape)
            continue
        parameter = latent_weight(model, name)
        if id(parameter) not in found:
            reason = plan.reason
            if plan.spec.is_quantized and name in changed:
                reason = f"{changed[name]} makes the weight of it"
            spec = WeightSpec(bits=32) if reason else plan.spec
            found[id(parameter)] = _weight(model, name, spec, reason)
        weights[name] = found[id(parameter)]
    return weights | _unknown(model, weights, picture, reach)


def _unknown(
    model: nn.Module, known: Mapping[str, AuditedWeight], picture: Picture, reach: Reach
) -> dict[str, AuditedWeight]:
    """Weights that the plan does not know, as it was made without an example: they are float."""
    spec = WeightSpec(bits=32)
    names = {name for product in picture.products for name in reach.names(product)}
    return {
        name: _weight(model, name, spec, "not in the plan, which no example was given for")
        for name in sorted(names - set(known))
    }


def _made(
    model: nn.Module,
    name: str,
    spec: WeightSpec,
    reason: str,
    weight: Tensor | None,
    shape: tuple[int, ...],
) -> AuditedWeight:
    """A weight as it enters, made of parameters; unknown if the example did not reach it."""
    count = math.prod(shape)
    if not spec.is_quantized or weight is None:
        return AuditedWeight(count, spec.bits, "", 0, 0.0, 0, reason)
    quantizer = made_quantizer(model, name)
    levels, scale = check_on_grid(name, weight, quantizer)
    groups = weight.shape[0] if spec.granularity == "channel" else 1
    return AuditedWeight(count, spec.bits, str(quantizer.kind), levels, scale, groups, "")


def _weight(model: nn.Module, name: str, spec: WeightSpec, reason: str) -> AuditedWeight:
    weight = latent_weight(model, name) if reason else current_weight(model, name)
    count = weight.numel()
    if not spec.is_quantized:
        size = float(weight.detach().abs().mean())
        return AuditedWeight(count, spec.bits, "", len(torch.unique(weight)), size, 0, reason)
    quantizer = quantizer_for(model, name, spec)
    levels, scale = check_on_grid(name, weight, quantizer)
    groups = weight.shape[0] if spec.granularity == "channel" else 1
    return AuditedWeight(count, spec.bits, str(quantizer.kind), levels, scale, groups, "")


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


def reached_weights(model: nn.Module, picture: Picture, reach: Reach) -> set[object]:
    """Identities of the weights that entered a product."""
    names = {name for product in picture.products for name in reach.names(product)}
    inputs = {n for product in picture.products for v in product.inputs for n in v.parameters}
    parts = {name for made in reach.made.values() for name in made.parameters}
    mixed = {name for product in picture.products for name in product.mixed_parameters}
    names |= set(map(weight_name, (inputs | mixed) - parts))
    return {identity(model, name, reach) for name in names}


def identity(model: nn.Module, name: str, reach: Reach) -> object:
    """The same for all names of one weight."""
    return name if name in reach.made else id(latent_weight(model, name))
