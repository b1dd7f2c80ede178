"""Quantization plan of a network: the options of each layer, resolved by name."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from qat.errors import SpecError, expect
from qat.nn.activation import QuantizedActivation
from qat.nn.binary_parametrization import METHODS
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.reach import Made, Reach, known_reach
from qat.quantize.weights import (
    RECURRENT_TYPES,
    latent_weight,
    unwrapped,
    weight_names,
    weight_parametrization,
    weight_place,
)
from qat.spec.quant import (
    ActivationSpec,
    Override,
    QuantSpec,
    WeightSpec,
    activation_of,
    default_grid,
    weight_of,
)

RELU_TYPES = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """What becomes of one weight that enters products.

    Attributes:
        spec: its options, bits 32 if it stays float.
        reason: why it stays float, "" if it does not.
        is_shared: whether an earlier layer has the same parameter, and with it the say.
        is_hindered: whether it stays float because its values cannot be put on a grid.
        is_made: whether the forward makes it of parameters; it is quantized where it is made.
    """

    spec: WeightSpec
    reason: str = ""
    is_shared: bool = False
    is_hindered: bool = False
    is_made: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of every layer of one network.

    Attributes:
        spec: what it was resolved from.
        weights: name of every weight that enters products -> its plan, in the order of
            registration; for a layer's `weight` it is the layer's name.
    """

    spec: QuantSpec
    weights: Mapping[str, WeightPlan]

    @property
    def quantized(self) -> dict[str, WeightSpec]:
        """Options of every parameter that is a quantized weight, by the first of its names."""
        plans = self.weights.items()
        own = {n: p for n, p in plans if not p.is_shared and not p.is_made}
        return {name: plan.spec for name, plan in own.items() if plan.spec.is_quantized}

    @property
    def made(self) -> dict[str, WeightSpec]:
        """Options of every quantized weight that is made of parameters, by its layer's name."""
        plans = self.weights.items()
        return {n: p.spec for n, p in plans if p.is_made and p.spec.is_quantized}

    def bits_by_name(self, name: str, ends: Collection[str]) -> int:
        """Bits that the options give a weight by its name alone, and by the ends that it is at."""
        floats = [end for end in ends if getattr(self.spec.ends, end) == "float"]
        return _weight_plan(name, "", self.spec, {name: floats[-1]} if floats else {}).spec.bits

    def activation(self, *names: str) -> ActivationSpec:
        """Options of the activation that goes by any of these names, overrides applied."""
        override = _last_match(self.spec, names, "activation")
        return self.spec.activation if override is None else activation_of(self.spec, override)


def resolve(model: nn.Module, spec: QuantSpec | Plan, *, reach: Reach | None = None) -> Plan:
    """Resolve what becomes of each weight; a plan is returned as it is.

    The order of decisions for a weight: one whose values cannot be put on a grid stays float; else
    the last override that matches; else the ends policy; else `spec.weight`. The ends are the
    weights that the image meets first and those that no other weight comes after, several if there
    are several heads; of a network that no example has run through, the first and the last layer in
    the order of registration. A parameter that several layers share has one plan, its first name's.

    Args:
        model: a network, prepared or not.
        spec: what to quantize, or the plan of this very network.
        reach: what an example has shown of it; None takes what it was prepared with.

    Raises:
        SpecError: an override matches no layer, or `spec` is something else.
    """
    if isinstance(spec, Plan):
        return spec
    spec = options_of(spec)
    model = unwrapped(model)
    reach = reach or known_reach(model)
    names = weight_names(model, reach)
    _check_overrides(model, spec, names, reach)
    ends = _float_ends(spec, list(names), reach)
    weights: dict[str, WeightPlan] = {}
    firsts: dict[int, WeightPlan] = {}
    for name, obstacle in names.items():
        if reach is not None and name in reach.made:
            plan = _weight_plan(name, _masked(reach.made[name], name, spec), spec, ends)
            weights[name] = replace(plan, is_made=True)
            continue
        parameter = id(latent_weight(model, name)) if not obstacle else None
        if parameter in firsts:
            weights[name] = replace(firsts[parameter], is_shared=True)
            continue
        plan = _weight_plan(name, obstacle or _unreachable(model, name, spec), spec, ends)
        weights[name] = plan
        if parameter is not None:
            firsts[parameter] = plan
    return Plan(spec, weights)


def options_of(spec: QuantSpec | Plan) -> QuantSpec:
    """The options themselves; raises SpecError if it is something else."""
    if isinstance(spec, Plan):
        return spec.spec
    expect(spec, QuantSpec, "spec", "QuantSpec.from_dict reads one from a dict")
    return spec


def _float_ends(spec: QuantSpec, names: list[str], reach: Reach | None) -> dict[str, str]:
    """The weights that an ends policy leaves float, and which end they are."""
    if reach is not None and (reach.first or reach.last):
        ends = {"first": reach.first, "last": reach.last}
    else:
        ends = {"first": frozenset(names[:1]), "last": frozenset(names[-1:])}
    return {
        name: end
        for end, members in ends.items()
        for name in members
        if getattr(spec.ends, end) == "float"
    }


def weight_projections(model: nn.Module, spec: QuantSpec | Plan) -> dict[Tensor, WeightQuantizer]:
    """Projection of every weight that the update rule quantizes, for `QuantOptimizer`.

    A parameter shared by several layers gets the first one's projection. Weights with an in-graph
    method are left out: the base optimizer alone moves them.

    Args:
        model: a network, prepared or not.
        spec: what to quantize, or the network's plan.

    Raises:
        SpecError: an override matches no layer.
    """
    plan, model = resolve(model, spec), unwrapped(model)
    return {
        latent_weight(model, name): weight_quantizer(options)
        for name, options in plan.quantized.items()
        if not options.is_in_graph
    }


@torch.no_grad()
def project_weights(model: nn.Module, spec: QuantSpec | Plan) -> None:
    """Put Q(w) into the weights that the update rule quantizes, in place.

    Args:
        model: prepared network that holds latent weights w.
        spec: the options it was prepared with, or its plan.
    """
    for parameter, projection in weight_projections(model, spec).items():
        parameter.copy_(projection(parameter))


def quantizer_for(
    model: nn.Module, name: str, spec: WeightSpec
) -> WeightQuantizer | WeightParametrization:
    """What quantizes the weight `name`: encode, decode and levels, whatever the method."""
    found = weight_parametrization(model, name) if spec.is_in_graph else None
    return weight_quantizer(spec) if found is None else found


def parametrization(spec: WeightSpec) -> WeightParametrization:
    """A new in-graph quantizer of these options."""
    own = {} if spec.derivative is None else {"derivative": spec.derivative}
    return METHODS[spec.method](spec.bits, granularity=spec.granularity, **own)


def weight_quantizer(spec: WeightSpec) -> WeightQuantizer:
    """The projection of these options."""
    grid = spec.grid or default_grid(spec.bits)
    return WeightQuantizer(spec.bits, spec.granularity, grid, mu=spec.mu)


def _weight_plan(
    name: str, obstacle: str, spec: QuantSpec, float_ends: Mapping[str, str]
) -> WeightPlan:
    if obstacle:
        return WeightPlan(spec=WeightSpec(bits=32), reason=obstacle, is_hindered=True)
    override = _last_match(spec, [name], "weight")
    if override is not None:
        chosen = weight_of(spec, override)
        reason = "" if chosen.is_quantized else f"override match={override.match}"
        return WeightPlan(spec=chosen, reason=reason)
    if name in float_ends:
        reason = f"ends.{float_ends[name]}=float"
        return WeightPlan(spec=WeightSpec(bits=32), reason=reason)
    return WeightPlan(spec=spec.weight, reason="" if spec.weight.is_quantized else "weight.bits=32")


def _unreachable(model: nn.Module, name: str, spec: QuantSpec) -> str:
    """Why an in-graph method cannot compute a weight, "" if it can."""
    override = _last_match(spec, [name], "weight")
    chosen = spec.weight if override is None else weight_of(spec, override)
    owner, attribute = weight_place(model, name)
    if chosen.is_in_graph and isinstance(owner, RECURRENT_TYPES):
        return f"{type(owner).__name__} keeps {attribute} in a list of its own; use method=update"
    return ""


def _masked(made: Made, name: str, spec: QuantSpec) -> str:
    """Why a weight with zeros cannot be put on its grid: the grid has none; "" if it can."""
    override = _last_match(spec, [name], "weight")
    chosen = spec.weight if override is None else weight_of(spec, override)
    if not made.has_zeros or not chosen.is_quantized:
        return ""
    of = parametrization(chosen) if chosen.is_in_graph else weight_quantizer(chosen)
    return "" if 0 in of.levels else f"{made.through} makes zeros, which its grid has not"


def _check_overrides(
    model: nn.Module, spec: QuantSpec, weights: Collection[str], reach: Reach | None
) -> None:
    """Raise SpecError for an override whose pattern matches nothing that it speaks of.

    Weight options need a weight; activation options an activation, a layer whose input may get a
    quantizer, or a module whose forward calls functions that do.
    """
    acts = [
        n for n, m in model.named_modules() if isinstance(m, (*RELU_TYPES, QuantizedActivation))
    ]
    around = [] if reach is None else sorted(reach.modules)
    for override in spec.overrides:
        names = list(weights) if override.weight else [*weights, *acts, *around]
        if not fnmatch.filter(names, override.match):
            kind = "conv or linear layer" if override.weight else "layer or activation"
            raise SpecError(
                f"quant.overrides: match={override.match!r} matches no {kind}; "
                f"names look like {', '.join(names[:3])}"
            )


def _last_match(
    spec: QuantSpec, names: Sequence[str], part: Literal["weight", "activation"]
) -> Override | None:
    """The last override for one of `names` that says something about the weight or activation."""
    for override in reversed(spec.overrides):
        matches = any(fnmatch.fnmatchcase(name, override.match) for name in names)
        if getattr(override, part) and matches:
            return override
    return None
