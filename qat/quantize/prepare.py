"""Preparation of a float network for training on few levels: quantizers in, weights untouched."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.errors import SpecError
from qat.nn.activation import ActivationQuantizer, QuantizedActivation
from qat.nn.learned_clip import DorefaActivation, LsqActivation, PactActivation
from qat.nn.parametrization import WeightParametrization
from qat.nn.sign_activation import SignActivation
from qat.quantize.call_sites import CALL_SITES, add_site, site_key
from qat.quantize.plan import RELU_TYPES, Plan, options_of, parametrization, resolve
from qat.quantize.preparation_version import difference_in_weights, keep_difference
from qat.quantize.products import Call, Picture, Product, trace
from qat.quantize.weights import (
    LAYER_TYPES,
    TRANSPOSED_TYPES,
    keep_reach,
    latent_weight,
    reach_of,
    weight_name,
    weight_parametrizations,
    weight_place,
)
from qat.spec.quant import ActivationSpec, QuantSpec

INPUT_QUANTIZER = "input_quantizer"
_EXAMPLE_SHAPE = "_qat_example_shape"  # attribute of a prepared network
_LITTLE = 0.5  # share of the weights below which a warning is due


def prepare(
    model: nn.Module, spec: QuantSpec | Plan, *, example: Tensor | None = None
) -> nn.Module:
    """Put activation quantizers into `model`, in place; weights stay plain parameters.

    With an `example` the network is run twice, and what enters its products decides:

    - each call of a ReLU (relu, relu6, hardtanh from 0 on, as a module or as a function) gets a
      quantizer of its own: in place of the module if that is called once, at the place of the call
      (`call_sites`) if not;
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
            place on a tensor that is read again, or quant.activation.shift=channel or
            quant.input_bits without `example`.
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
        names = _relu_modules(model, plan)
        _check_names(model, names)
        _replace_relus(model, plan, dict.fromkeys(names))
        _parametrize_weights(model, plan)
        return Prepared(plan, tuple(names), 0)
    picture = trace(model, example)
    reach = reach_of(model, picture)
    plan = resolve(model, options, reach=reach)
    differences = [difference_in_weights(model, plan)]
    activations = _quantize_activations(model, plan, picture)
    _parametrize_weights(model, plan)
    inputs = _quantize_inputs(model, plan, trace(model, example)) if _has_inputs(plan) else 0
    differences += _differences_in_activations(model)
    keep_difference(model, next(filter(None, differences), ""))
    keep_reach(model, reach)
    setattr(model, _EXAMPLE_SHAPE, tuple(example.shape[1:]))
    return Prepared(plan, activations, inputs)


def _differences_in_activations(model: nn.Module) -> list[str]:
    """In what version 1 of the preparation put other quantizers, in words."""
    names = activation_quantizers(model)
    at_calls = [name for name in names if f"{CALL_SITES}." in name]
    unsigned = [
        name
        for name, quantizer in names.items()
        if name.endswith(f".{INPUT_QUANTIZER}") and not quantizer.signed
    ]
    return [
        *(f"had no quantizer at {name}" for name in at_calls[:1]),
        *(f"had a signed quantizer at {name}, if any" for name in unsigned[:1]),
    ]


def example_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one image of the example that a network was prepared with, None if unknown."""
    return getattr(model, _EXAMPLE_SHAPE, None)


def is_prepared(model: nn.Module) -> bool:
    """Whether a network holds quantizers already."""
    kinds = (QuantizedActivation, WeightParametrization)
    return any(isinstance(module, kinds) for module in model.modules())


def activation_quantizers(model: nn.Module) -> dict[str, QuantizedActivation]:
    """Dotted name -> activation quantizer, in the order of registration."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedActivation)}


def enable_quantizers(model: nn.Module, enabled: bool) -> None:
    """Let activation quantizers and in-graph weights act, or be what they replaced."""
    for quantizer in activation_quantizers(model).values():
        quantizer.enabled = enabled
    for _, weight in weight_parametrizations(model):
        weight.enabled = enabled


def set_progress(model: nn.Module, progress: float) -> None:
    """Move the scheduled coarse derivatives (tanh, power) to this place of the quantized phase.

    Args:
        model: prepared network.
        progress: 0 (start of the quantized phase) .. 1 (its end).
    """
    for member in model.modules():
        if isinstance(member, (QuantizedActivation, WeightParametrization)):
            member.set_progress(progress)


def _quantizer(
    options: ActivationSpec,
    channels: int | None = None,
    *,
    signed: bool = False,
    ceiling: float | None = None,
) -> QuantizedActivation:
    """The activation quantizer of these options; `channels` of its input, for a shift."""
    place: dict[str, Any] = {"signed": signed, "ceiling": ceiling}
    if options.kind == "sign":
        wants_shift = options.shift == "channel"
        if wants_shift and channels is None:
            raise SpecError(
                "quant.activation.shift=channel needs the number of channels; give prepare() an "
                "example, or use shift=none"
            )
        shifted = channels if wants_shift else None
        return SignActivation(options.derivative, channels=shifted, **place)
    if options.kind != "staircase":
        return _CLIPPED[options.kind](options.bits, options.derivative, **place)
    return ActivationQuantizer(
        options.bits,
        options.derivative,
        step_derivative=options.step_derivative,
        learned=options.step_rate > 0,
        **place,
    )


_CLIPPED: dict[str, Callable[..., QuantizedActivation]] = {
    "lsq": LsqActivation,
    "pact": PactActivation,
    "dorefa": DorefaActivation,
}


def _warn_of_little(model: nn.Module, plan: Plan) -> None:
    """Say so where few of the weights that were to be quantized can be."""
    hindered = {
        name: latent_weight(model, name).numel()
        for name, weight in plan.weights.items()
        if weight.is_hindered and not weight.is_shared
    }
    if not hindered or not plan.spec.weight.is_quantized:
        return
    quantized = sum(latent_weight(model, name).numel() for name in plan.quantized)
    total = quantized + sum(hindered.values())
    if quantized < _LITTLE * total:
        largest = max(hindered, key=hindered.__getitem__)
        warnings.warn(
            f"only {100 * quantized / total:.1f} % of the {total:,} weights that were to get few "
            f"levels can; the largest that stays float is {largest} "
            f"({plan.weights[largest].reason}); the audit lists all",
            stacklevel=3,
        )


def _relu_modules(model: nn.Module, plan: Plan) -> list[str]:
    """Names of the ReLU modules that are to be quantized."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) in RELU_TYPES and plan.activation(name).is_quantized
    ]


def _replace_relus(model: nn.Module, plan: Plan, channels: dict[str, int | None]) -> None:
    """Put quantizers in the place of ReLU modules, given the channels that each has seen."""
    for name, count in channels.items():
        ceiling = 6.0 if isinstance(model.get_submodule(name), nn.ReLU6) else None
        _replace(model, name, _quantizer(plan.activation(name), count, ceiling=ceiling))


def _quantize_activations(model: nn.Module, plan: Plan, picture: Picture) -> tuple[str, ...]:
    """A quantizer for each call of a ReLU; names of what was replaced."""
    calls = [call for call in picture.calls if call.is_activation]
    seen = {call.module: call.channels for call in calls}
    uses = Counter(call.module for call in calls)
    shared = _shared_names(model)
    names = _relu_modules(model, plan)
    replaced = {n: seen.get(n) for n in names if uses[n] <= 1 and n not in shared}
    at_calls = [
        (call, options)
        for call in calls
        if call.module not in replaced
        and (options := plan.activation(call.module, *_owners(call))).is_quantized
    ]
    changed = {*replaced, *(call.module for call, _ in at_calls)} & set(picture.overwritten)
    if changed:
        name = min(changed)
        raise SpecError(
            f"a ReLU in {name or 'the network'} works in place, and what it overwrites is read "
            "again, so that a quantizer in its place would change the network; use what the ReLU "
            "gives (x = relu(x)) everywhere, or inplace=False"
        )
    _replace_relus(model, plan, replaced)
    for call, options in at_calls:
        owner = picture.owner(call)
        count = picture.count(call, owner, without=replaced)
        quantizer = _quantizer(options, call.channels, ceiling=call.ceiling)
        _add(model, owner, site_key(call.function, count), quantizer)
    return (*replaced, *(call.module for call, _ in at_calls))


def _owners(call: Call) -> list[str]:
    """Names under which a call's quantizer may be meant: the modules directly around it."""
    return [name for name, _ in call.frames[-2:]]


def _shared_names(model: nn.Module) -> set[str]:
    """Names of modules that the network holds under several names."""
    every = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return {name for name, module in model.named_modules() if every[id(module)] > 1}


def _add(model: nn.Module, owner: str, key: str, quantizer: nn.Module) -> None:
    add_site(model.get_submodule(owner), key, quantizer.to(_device(model)))


def _parametrize_weights(model: nn.Module, plan: Plan) -> None:
    """Register the in-graph quantizers; their scales start from the weights as they are."""
    for name, weight in plan.weights.items():
        if weight.spec.is_in_graph:
            owner, attribute = weight_place(model, name)
            quantizer = parametrization(weight.spec).to(_device(model))
            quantizer.start(getattr(owner, attribute).detach())
            parametrize.register_parametrization(owner, attribute, quantizer)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.to(_device(model)))


def _device(model: nn.Module) -> torch.device:
    """Where the network lives; a quantizer's step has to live there too."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _has_inputs(plan: Plan) -> bool:
    """Whether any input of a weight may have to be quantized."""
    spec = plan.spec
    quantized = [o for o in spec.overrides if o.activation and o.activation.get("bits") != 32]
    return spec.activation.is_quantized or spec.input_bits is not None or bool(quantized)


def _quantize_inputs(model: nn.Module, plan: Plan, picture: Picture) -> int:
    """Quantizers on inputs of weights that are still float; returns how many."""
    modules = dict(model.named_modules())
    wanted = [(p, options) for p in picture.products if (options := _input_options(plan, p))]
    added = 0
    for product, options in wanted:
        signed = not product.inputs[0].is_positive
        quantizer = _quantizer(options, signed=signed).to(_device(model))
        if _is_own_input(modules[product.module], product, picture):
            modules[product.module].add_module(INPUT_QUANTIZER, quantizer)
            modules[product.module].register_forward_pre_hook(_quantize_input, with_kwargs=True)
        elif product.call is not None and product.place is not None:
            owner = picture.owner(product.call)
            count = picture.count(product.call, owner)
            _add(model, owner, site_key(product.function, count, product.place), quantizer)
        else:
            continue  # the audit names it
        added += 1
    return added


def _input_options(plan: Plan, product: Product) -> ActivationSpec | None:
    """How the input of a product is to be quantized, None if it is not."""
    if product.weight is None or product.weight.kind != "weight":
        return None
    source = product.inputs[0]
    names = [product.module, *(weight_name(name) for name in product.weight.parameters)]
    options = plan.activation(*names)
    if source.kind == "image" and plan.spec.input_bits is not None:
        kind = "staircase" if options.kind == "sign" else options.kind
        return replace(options, bits=plan.spec.input_bits, kind=kind, shift="none")
    is_lost = options.kind == "sign" and source.is_positive  # every sign would be the same
    if source.kind != "float" or not options.is_quantized or is_lost:
        return None
    return replace(options, shift="none")  # a layer's input has no norm of its own


def _is_own_input(module: nn.Module, product: Product, picture: Picture) -> bool:
    """Whether a product is what a layer called once makes of its own input and weight."""
    assert product.weight is not None
    names = [weight_name(name) for name in product.weight.parameters]
    return (
        isinstance(module, (*LAYER_TYPES, *TRANSPOSED_TYPES))
        and picture.module_calls.get(product.module) == 1
        and names == [product.module]
        and product.call is not None
    )


def _quantize_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook; a module-level function, so that networks can be copied and pickled."""
    quantizer: QuantizedActivation = module.get_submodule(INPUT_QUANTIZER)  # type: ignore[assignment]
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}


def _check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse a ReLU module that the network holds under several names."""
    every = list(model.named_modules(remove_duplicate=False))
    for name in names:
        module = model.get_submodule(name)
        others = [other for other, m in every if m is module and other != name]
        if others:
            raise SpecError(
                f"the activation module {name} is also {others[0]}, so both would share one step; "
                "pass example= to prepare(), which gives every use a step of its own"
            )
