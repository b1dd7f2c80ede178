"""Conversion of a trained network to codes, scales and what stays float."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.errors import CheckpointError, NonFiniteError, SpecError
from qat.export.packed.weight_codes import WeightCodes, weight_codes
from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.loading import is_finite, name_problems, quantizer_entries
from qat.quantize.made_weights import fix_weight, made_quantizer, made_weights
from qat.quantize.names import plain_key
from qat.quantize.plan import Plan, parametrization, quantizer_for, resolve
from qat.quantize.plan import weight_quantizer as projection
from qat.quantize.preparation_version import preparation_of
from qat.quantize.reach import example_shape, known_reach
from qat.quantize.weights import (
    current_weight,
    latent_weight,
    unwrapped,
    weight_parametrizations,
    weight_place,
)
from qat.spec.quant import QuantSpec, WeightSpec


@dataclass(frozen=True, slots=True)
class Converted:
    """All that a trained network holds.

    Attributes:
        weights: dotted name of each quantized conv or linear layer -> its codes; a weight that
            several layers share is its first layer's.
        residue: the rest of the state dict, float: biases, normalisation, steps, float weights.
        example: shape of one image of the example that it was prepared with, None if unknown.
        preparation: earliest version of the preparation that makes the same of the network.
    """

    weights: dict[str, WeightCodes]
    residue: dict[str, Tensor]
    example: tuple[int, ...] | None = None
    preparation: int = 1


def convert(model: nn.Module, spec: QuantSpec | Plan) -> Converted:
    """Codes, scales and float residue of a prepared network.

    The weights may be latent (inside `QuantOptimizer.latent_weights()`), which are projected here,
    or hard, whose codes are read off. Relaxed ones are neither: their codes are right on exact
    grids only.

    Args:
        model: prepared network; it is left as it is.
        spec: the options it was prepared with, or its plan.

    Raises:
        SpecError: a layer's weight should have a quantizer of its own and has none, or shares its
            weight with a layer that has another one; or its quantizers are disabled, as in the
            float warm start; or it keeps state that is no tensor.
        NonFiniteError: a parameter or statistic is NaN or infinite.
    """
    model = unwrapped(model)
    _refuse_float_phase(model)
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise SpecError(f"{key} is no tensor; a file holds tensors alone, so keep it elsewhere")
        if not is_finite(tensor):
            raise NonFiniteError(f"{key} holds a value that is not finite; export another epoch")
    weights: dict[str, WeightCodes] = {}
    for name, weight_spec in resolve(model, spec).quantized.items():
        if weight_spec.is_in_graph and not parametrize.is_parametrized(*weight_place(model, name)):
            raise SpecError(
                f"the weight {name} has no {weight_spec.method} quantizer; convert the network "
                "that prepare() has made, or take the codes of load_packed(...).converted"
            )
        quantizer = quantizer_for(model, name, weight_spec)
        weights[name] = weight_codes(latent_weight(model, name), quantizer)
    weights |= _made_codes(model, resolve(model, spec))
    _refuse_shared(model, weights)
    coded = _weight_keys(model, weights)
    state = model.state_dict()
    residue = {key: state[key].detach().cpu().clone() for key in state if key not in coded}
    return Converted(weights, residue, example_shape(model), preparation_of(model))


def _made_codes(model: nn.Module, plan: Plan) -> dict[str, WeightCodes]:
    """Codes of the weights that the forward makes."""
    return {
        name: weight_codes(weight, made_quantizer(model, name))
        for name, weight in made_weights(model, plan).items()
    }


def _refuse_float_phase(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedActivation, WeightParametrization)) and not module.enabled:
            raise SpecError(
                f"the quantizer {name} is disabled: this network is of the float warm start; "
                "export a quantized epoch (state=selected), or enable_quantizers(net, True)"
            )


def quantizer_of(spec: WeightSpec) -> WeightQuantizer | WeightParametrization:
    """What decodes the codes of a layer with these options."""
    return parametrization(spec) if spec.is_in_graph else projection(spec)


@torch.no_grad()
def put(model: nn.Module, converted: Converted) -> None:
    """Make a prepared network the converted one: hard weights as plain parameters.

    Args:
        model: prepared with the options of the converted network; changed in place. In-graph
            quantizers are taken away, as the weights are on their grids for good.
        converted: what it shall hold.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    check_residue(model, converted.weights, converted.residue)
    # into its own state dict, which also knows the versions of its modules' entries
    state = model.state_dict()
    state.update(converted.residue)
    model.load_state_dict(state)
    reach = known_reach(model)
    for name, weight in converted.weights.items():
        if reach is not None and name in reach.made:
            fix_weight(model, name, weight.hard())
            continue
        owner, attribute = weight_place(model, name)
        if parametrize.is_parametrized(owner, attribute):
            _separate(owner)
            parametrize.remove_parametrizations(owner, attribute)
        current_weight(model, name).copy_(weight.hard())


def _separate(layer: nn.Module) -> None:
    """A class of its own for a parametrized layer: torch takes the weight away from the class.

    A copy of a network has the classes of the original, which would lose its weights, too.
    """
    kind = type(layer)
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = type(kind.__name__, kind.__bases__, own)


def latent_state(model: nn.Module, converted: Converted) -> dict[str, Tensor]:
    """A state dict with latent weights that have these codes, for training that goes on from here.

    Args:
        model: prepared network, which may have other quantizers than the converted one: then what
            these have learned is left out, as in float weights.
        converted: what it shall hold.
    """
    reach = known_reach(model)
    made = [name for name in converted.weights if reach is not None and name in reach.made]
    if made:
        raise CheckpointError(
            f"the weight of {made[0]} is stored as its forward has made it, and not what it is "
            "made of: training cannot go on from this file, only from the run's checkpoint"
        )
    weights = {
        key: weight.latent()
        for name, weight in converted.weights.items()
        for key in _weight_keys(model, {name: weight})
    }
    state = {**converted.residue, **weights}
    entries = set(quantizer_entries(model))
    plain = {plain_key(key) for key in set(model.state_dict()) - entries}
    theirs = {key for key in state if plain_key(key) not in plain}
    if theirs != entries:
        state = {key: value for key, value in state.items() if key not in theirs | entries}
    return state


def check_residue(
    model: nn.Module, weights: Mapping[str, object], residue: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError unless `residue` is what `model` holds beside these layers' weights."""
    state = model.state_dict()
    wanted = set(state) - _weight_keys(model, weights)
    problems = name_problems(wanted, set(residue))
    problems += [
        f"{key} is {residue[key].dtype} of shape {tuple(residue[key].shape)}, the network wants "
        f"{state[key].dtype} of shape {tuple(state[key].shape)}"
        for key in sorted(wanted & set(residue))
        if (residue[key].shape, residue[key].dtype) != (state[key].shape, state[key].dtype)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError("weights do not fit: " + "; ".join(problems[:3]) + more)


def _refuse_shared(model: nn.Module, names: Mapping[str, object]) -> None:
    """Refuse one weight behind several in-graph quantizers, whose hard values may differ."""
    for name, quantizer in weight_parametrizations(model):
        if name not in names:
            raise SpecError(
                f"the weight {name} is another layer's too, and each has a {quantizer.kind} "
                "quantizer of its own; use quant.weight.method=update for shared weights"
            )


def _weight_keys(model: nn.Module, names: Mapping[str, object]) -> set[str]:
    """Keys of the state dict under which the weights of these layers stand, shared ones too."""
    reach = known_reach(model)
    made = {} if reach is None else {n: m for n, m in reach.made.items() if n in names}
    coded = {id(latent_weight(model, name)) for name in names if name not in made}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    coded |= {id(parameters[key]) for weight in made.values() for key in weight.own}
    return {key for key, parameter in parameters.items() if id(parameter) in coded}
