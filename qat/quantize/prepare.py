"""Preparation of a float network for training on few levels: quantizers in, weights untouched."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.errors import SpecError, expect
from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.activations import (
    activation_quantizers,
    check_names,
    device_of,
    differences_in_activations,
    quantize_activations,
    quantize_inputs,
    relu_modules,
    replace_relus,
)
from qat.quantize.call_checks import check_calls
from qat.quantize.made_weights import quantize_made
from qat.quantize.plan import Plan, options_of, parametrization, resolve
from qat.quantize.preparation_version import difference_in_weights, keep_difference
from qat.quantize.products import trace
from qat.quantize.reach import keep_reach, keep_shape, known_reach, reach_of
from qat.quantize.weights import weight_count, weight_place
from qat.spec.quant import QuantSpec

_LITTLE = 0.5  # share of the weights below which a warning is due


def prepare(
    model: nn.Module, spec: QuantSpec | Plan, *, example: Tensor | None = None
) -> nn.Module:
    """Put activation quantizers into `model`, in place; weights stay plain parameters.

    With an `example` the network is run two to five times, and what enters its products decides:

    - each call of a ReLU (relu, relu6, hardtanh from 0 on, as a module or as a function) gets a
      quantizer of its own: in place of the module if that is called once and has no hooks, at the
      place of the call (`call_sites`) if not;
    - each input of a weight that is still float gets one: unsigned where no value can be negative.
      Averages of levels (global pooling), constants and, unless `spec.input_bits` is set, the image
      itself, whatever functions it has passed, stay as they are; products of two activations too.

    Weights with an in-graph method (lsq, dorefa, reste, biper) get a parametrization; what is
    learned there starts from the weights that the network holds now.

    Args:
        model: any network; what is float in it stays as it was, and so do the keys of its weights.
        spec: what to quantize, or the network's plan.
        example: images (N, C, H, W) for the runs. Without it only ReLU modules are found, and one
            that is called several times gets one step for all its calls; a warning says so. The
            images' shape is kept with the network, for the file that is made of it.

    Returns:
        `model` itself.

    Raises:
        SpecError: it is prepared already, an override matches no layer, an activation works in
            place on a tensor that is read again, calls are others in training or for more images, a
            module has a child `call_sites` of its own, it is a ScriptModule or has parameters
            without a shape, or quant.activation.shift=channel, quant.input_bits or hooks on a ReLU
            without `example`. What was refused while it was prepared is to be built anew.
    """
    done = insert_quantizers(model, spec, example)
    plan = done.plan
    if plan.spec.activation.is_quantized and not done.activations and not done.inputs:
        warnings.warn(
            "prepare() found no activation to quantize: no nn.ReLU module"
            + (" or function" if example is not None else "")
            + ("" if example is not None else "; pass example= to quantize the layers' inputs"),
            stacklevel=2,
        )
    elif done.activations and example is None:
        warnings.warn(
            "prepare() did not check whether an activation module, such as "
            f"{done.activations[0]}, is used several times, whose uses would share one step, and "
            "left float what it could not see: inputs that no ReLU module feeds, and ReLUs that "
            "are called as functions; pass example= to have them found",
            stacklevel=2,
        )
    _warn_of_little(model, plan)
    return model


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a preparation has done.

    Attributes:
        plan: of the network, by what the example has shown.
        activations: names of the float activations that were replaced.
        inputs: number of inputs that got a quantizer.
    """

    plan: Plan
    activations: tuple[str, ...]
    inputs: int


def insert_quantizers(model: nn.Module, spec: QuantSpec | Plan, example: Tensor | None) -> Prepared:
    """Do what `prepare` does, without its warnings."""
    options = options_of(spec)
    if is_prepared(model):
        raise SpecError(
            "this network is prepared already; prepare a float one, or load weights into this one"
        )
    if example is None:
        plan = resolve(model, options)
        if plan.spec.input_bits is not None:
            raise SpecError(
                f"quant.input_bits={plan.spec.input_bits} needs to know which layers the image "
                "feeds; give prepare() an example, or use input_bits=null"
            )
        names = relu_modules(model, plan)
        check_names(model, names)
        replace_relus(model, plan, dict.fromkeys(names))
        _parametrize_weights(model, plan)
        return Prepared(plan, tuple(names), 0)
    _check_followable(model, example)
    picture = trace(model, example)
    reach = reach_of(model, picture)
    plan = resolve(model, options, reach=reach)
    differences = [difference_in_weights(model, plan)]
    activations = quantize_activations(model, plan, picture)
    _parametrize_weights(model, plan)
    quantize_made(model, plan, reach, example)
    second = trace(model, example)
    inputs = quantize_inputs(model, plan, second)
    check_calls(model, example, second)
    differences += differences_in_activations(model, plan, second)
    keep_difference(model, next(filter(None, differences), ""))
    keep_reach(model, reach)
    keep_shape(model, example)
    return Prepared(plan, activations, inputs)


def is_prepared(model: nn.Module) -> bool:
    """Whether a network holds quantizers already."""
    kinds = (QuantizedActivation, WeightParametrization)
    return any(isinstance(module, kinds) for module in model.modules())


def enable_quantizers(model: nn.Module, enabled: bool) -> None:
    """Let activation quantizers and in-graph weights act, or be what they replaced."""
    for quantizer in activation_quantizers(model).values():
        quantizer.enabled = enabled
    for module in model.modules():
        if isinstance(module, WeightParametrization):
            module.enabled = enabled


def set_progress(model: nn.Module, progress: float) -> None:
    """Move the scheduled coarse derivatives (tanh, power) to this place of the quantized phase.

    Args:
        model: prepared network.
        progress: 0 (start of the quantized phase) .. 1 (its end).
    """
    for member in model.modules():
        if isinstance(member, (QuantizedActivation, WeightParametrization)):
            member.set_progress(progress)


def _warn_of_little(model: nn.Module, plan: Plan) -> None:
    """Say so where few of the weights that were to be quantized can be."""
    reach = known_reach(model)
    hindered = {
        name: weight_count(model, name, reach)
        for name, weight in plan.weights.items()
        if weight.is_hindered and not weight.is_shared
    }
    if not hindered or not plan.spec.weight.is_quantized:
        return
    few = (*plan.quantized, *plan.made)
    quantized = sum(weight_count(model, name, reach) for name in few)
    total = quantized + sum(hindered.values())
    if quantized < _LITTLE * total:
        largest = max(hindered, key=hindered.__getitem__)
        warnings.warn(
            f"only {100 * quantized / total:.1f} % of the {total:,} weights that were to get few "
            f"levels can; the largest that stays float is {largest or 'one of the network itself'} "
            f"({plan.weights[largest].reason}); the audit lists all",
            stacklevel=3,
        )


def _check_followable(model: nn.Module, example: Tensor) -> None:
    """Refuse what cannot be run and followed, in a sentence."""
    expect(example, Tensor, "example", "give images of shape (N, C, H, W)")
    if example.ndim == 0 or example.numel() == 0:
        raise SpecError(
            f"the example of shape {tuple(example.shape)} shows nothing; give images (N, C, H, W)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise SpecError("a ScriptModule cannot be prepared; prepare the network that it is made of")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise SpecError(f"{name} has no shape yet; call the network once, then prepare it")


def _parametrize_weights(model: nn.Module, plan: Plan) -> None:
    """Register the in-graph quantizers; their scales start from the weights as they are."""
    for name, weight in plan.weights.items():
        if weight.spec.is_in_graph and not weight.is_made:
            owner, attribute = weight_place(model, name)
            quantizer = parametrization(weight.spec).to(device_of(model))
            quantizer.start(getattr(owner, attribute).detach())
            parametrize.register_parametrization(owner, attribute, quantizer)
