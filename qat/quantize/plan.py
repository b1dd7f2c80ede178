"""Quantization plan of a network: the options of each layer, resolved by name."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.errors import SpecError, expect
from qat.nn.activation import QuantizedActivation
from qat.nn.binary_parametrization import METHODS
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.flow import LAYER_TYPES
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
    """What becomes of one conv or linear weight.

    Attributes:
        spec: its options, bits 32 if it stays float.
        reason: why it stays float, "" if it does not.
        is_shared: whether an earlier layer has the same parameter, and with it the say.
    """

    spec: WeightSpec
    reason: str = ""
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of every layer of one network.

    Attributes:
        spec: what it was resolved from.
        weights: dotted name of every conv and linear layer -> its plan, in the order of
            registration.
    """

    spec: QuantSpec
    weights: Mapping[str, WeightPlan]

    @property
    def quantized(self) -> dict[str, WeightSpec]:
        """Options of every layer that holds a quantized weight of its own, by dotted name."""
        plans = self.weights.items()
        return {n: p.spec for n, p in plans if p.spec.is_quantized and not p.is_shared}

    def activation(self, name: str) -> ActivationSpec:
        """Options of the activation `name`, overrides applied."""
        override = _last_match(self.spec, name, "activation")
        return self.spec.activation if override is None else activation_of(self.spec, override)


def resolve(model: nn.Module, spec: QuantSpec | Plan) -> Plan:
    """Resolve what becomes of each layer; a plan is returned as it is.

    The order of decisions for a weight: a layer whose weight cannot be projected stays float; else
    the last override that matches; else the ends policy of the first and the last layer; else
    `spec.weight`. Preparing a network changes neither its names nor its plan.

    Args:
        model: a network, prepared or not.
        spec: what to quantize, or the plan of this very network.

    Raises:
        SpecError: an override matches no layer, or `spec` is something else.
    """
    if isinstance(spec, Plan):
        return spec
    expect(spec, QuantSpec, "spec", "QuantSpec.from_dict reads one from a dict")
    _check_overrides(model, spec)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LAYER_TYPES)]
    ends = [("first", layers[0][0]), ("last", layers[-1][0])] if layers else []
    float_ends = {name: end for end, name in ends if getattr(spec.ends, end) == "float"}
    weights: dict[str, WeightPlan] = {}
    seen: set[int] = set()
    for name, module in layers:
        parameter = id(latent_weight(module))
        plan = _weight_plan(name, module, spec, float_ends)
        weights[name] = replace(plan, is_shared=parameter in seen)
        seen.add(parameter)
    return Plan(spec, weights)


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
    return {
        latent_weight(model.get_submodule(name)): weight_quantizer(options)
        for name, options in resolve(model, spec).quantized.items()
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


def latent_weight(module: nn.Module) -> Tensor:
    """The parameter behind a conv or linear weight, also where a parametrization computes it."""
    holder: Any = module
    if parametrize.is_parametrized(module, "weight"):
        return cast(Tensor, holder.parametrizations.weight.original)
    return cast(Tensor, holder.weight)


def layer_quantizer(module: nn.Module, spec: WeightSpec) -> WeightQuantizer | WeightParametrization:
    """What quantizes the weight of `module`: encode, decode and levels, whatever the method."""
    found = dict(weight_parametrizations(module)).get("")
    return weight_quantizer(spec) if found is None else found


def weight_parametrizations(model: nn.Module) -> Iterator[tuple[str, WeightParametrization]]:
    """Dotted layer name and in-graph quantizer of every parametrized weight in `model`."""
    for name, module in model.named_modules():
        if isinstance(module, LAYER_TYPES) and parametrize.is_parametrized(module, "weight"):
            holder: Any = module
            first = holder.parametrizations.weight[0]
            if isinstance(first, WeightParametrization):
                yield name, first


def parametrization(spec: WeightSpec) -> WeightParametrization:
    """A new in-graph quantizer of these options."""
    own = {} if spec.derivative is None else {"derivative": spec.derivative}
    return METHODS[spec.method](spec.bits, granularity=spec.granularity, **own)


def weight_quantizer(spec: WeightSpec) -> WeightQuantizer:
    """The projection of these options."""
    grid = spec.grid or default_grid(spec.bits)
    return WeightQuantizer(spec.bits, spec.granularity, grid, mu=spec.mu)


def _weight_plan(
    name: str, module: nn.Module, spec: QuantSpec, float_ends: Mapping[str, str]
) -> WeightPlan:
    floating = WeightSpec(bits=32)
    if "Std" in type(module).__name__:
        return WeightPlan(spec=floating, reason="its forward standardises the weight")
    override = _last_match(spec, name, "weight")
    if override is not None:
        chosen = weight_of(spec, override)
        reason = "" if chosen.is_quantized else f"override match={override.match}"
        return WeightPlan(spec=chosen, reason=reason)
    if name in float_ends:
        return WeightPlan(spec=floating, reason=f"ends.{float_ends[name]}=float")
    return WeightPlan(spec=spec.weight, reason="" if spec.weight.is_quantized else "weight.bits=32")


def _check_overrides(model: nn.Module, spec: QuantSpec) -> None:
    """Raise SpecError for an override whose pattern matches nothing that it speaks of.

    Weight options need a conv or linear layer; activation options an activation, or a layer whose
    input may get a signed quantizer.
    """
    acts = (*LAYER_TYPES, *RELU_TYPES, QuantizedActivation)
    for override in spec.overrides:
        types = LAYER_TYPES if override.weight else acts
        names = [name for name, module in model.named_modules() if isinstance(module, types)]
        if not fnmatch.filter(names, override.match):
            kind = "conv or linear layer" if override.weight else "layer or activation"
            raise SpecError(
                f"quant.overrides: match={override.match!r} matches no {kind}; "
                f"names look like {', '.join(names[:3])}"
            )


def _last_match(
    spec: QuantSpec, name: str, part: Literal["weight", "activation"]
) -> Override | None:
    """The last override for `name` that says something about the weight or the activation."""
    for override in reversed(spec.overrides):
        if getattr(override, part) and fnmatch.fnmatchcase(name, override.match):
            return override
    return None
