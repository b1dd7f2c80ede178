"""Quantizers of activations: one for each call of a ReLU, and for each input that is float."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qat.errors import SpecError
from qat.nn.activation import ActivationQuantizer, QuantizedActivation
from qat.nn.learned_clip import DorefaActivation, LsqActivation, PactActivation
from qat.nn.sign_activation import SignActivation
from qat.quantize.call_sites import CALL_SITES, add_site, site_key
from qat.quantize.names import weight_name
from qat.quantize.picture import Call, Picture, Product
from qat.quantize.plan import RELU_TYPES, Plan
from qat.quantize.values import Value
from qat.quantize.weights import LAYER_TYPES, TRANSPOSED_TYPES
from qat.spec.quant import ActivationSpec

INPUT_QUANTIZER = "input_quantizer"


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


def relu_modules(model: nn.Module, plan: Plan) -> list[str]:
    """Names of the ReLU modules that are to be quantized."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) in RELU_TYPES and plan.activation(name).is_quantized
    ]


def replace_relus(model: nn.Module, plan: Plan, channels: dict[str, int | None]) -> None:
    """Put quantizers in the place of ReLU modules, given the channels that each has seen."""
    for name, count in channels.items():
        ceiling = 6.0 if isinstance(model.get_submodule(name), nn.ReLU6) else None
        _replace(model, name, _quantizer(plan.activation(name), count, ceiling=ceiling))


def quantize_activations(model: nn.Module, plan: Plan, picture: Picture) -> tuple[str, ...]:
    """A quantizer for each call of a ReLU; names of what was replaced."""
    calls = [call for call in picture.calls if call.is_activation and not call.stays_float]
    kept_float = {call.module for call in picture.calls if call.stays_float}
    seen = {call.module: call.channels for call in calls}
    uses = Counter(call.module for call in calls)
    shared = _other_names(model)
    names = relu_modules(model, plan)
    replaced = {
        name: seen.get(name)
        for name in names
        if uses[name] <= 1
        and name not in shared
        and name not in kept_float
        and not _has_hooks(model.get_submodule(name))
    }
    at_calls = [
        (call, options)
        for call in calls
        if call.module not in replaced and (options := plan.activation(call.module)).is_quantized
    ]
    changed = {*replaced, *(call.module for call, _ in at_calls)} & set(picture.overwritten)
    if changed:
        name = min(changed)
        raise SpecError(
            f"a ReLU in {name or 'the network'} works in place, and what it overwrites is read "
            "again, so that a quantizer in its place would change the network; use what the ReLU "
            "gives (x = relu(x)) everywhere, or inplace=False"
        )
    replace_relus(model, plan, replaced)
    for call, options in at_calls:
        count = picture.count(call, picture.owner(call), without=replaced)
        quantizer = _quantizer(options, call.channels, ceiling=call.ceiling)
        _add(model, picture, call, site_key(call.function, count), quantizer)
    return (*replaced, *(call.module for call, _ in at_calls))


def _other_names(model: nn.Module) -> dict[str, list[str]]:
    """Names of modules that the network holds under several names -> the others."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return {own[0]: own[1:] for own in names.values() if len(own) > 1}


def _has_hooks(module: nn.Module) -> bool:
    """Whether someone listens to a module, or changes what it gives: then it has to stay."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _add(model: nn.Module, picture: Picture, call: Call, key: str, quantizer: nn.Module) -> None:
    add_site(model, picture.owner(call), call.module, key, quantizer.to(device_of(model)))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.to(device_of(model)))


def device_of(model: nn.Module) -> torch.device:
    """Where the network lives; a quantizer's step has to live there too."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def quantize_inputs(model: nn.Module, plan: Plan, picture: Picture) -> int:
    """Quantizers on inputs of weights that are still float; returns how many."""
    modules = dict(model.named_modules())
    wanted = [(p, options) for p in picture.products if (options := _input_options(plan, p))]
    added = 0
    for product, options in wanted:
        signed = not product.inputs[0].is_positive
        quantizer = _quantizer(options, signed=signed).to(device_of(model))
        if _is_own_input(modules[product.module], product, picture):
            modules[product.module].add_module(INPUT_QUANTIZER, quantizer)
            modules[product.module].register_forward_pre_hook(_quantize_input, with_kwargs=True)
        elif product.call is not None and product.place is not None:
            count = picture.count(product.call, picture.owner(product.call))
            key = site_key(product.function, count, product.place)
            _add(model, picture, product.call, key, quantizer)
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
    """Whether a layer called once makes this one product, of its own input."""
    products = [other for other in picture.products if other.module == product.module]
    return (
        isinstance(module, (*LAYER_TYPES, *TRANSPOSED_TYPES))
        and not hasattr(module, INPUT_QUANTIZER)
        and picture.module_calls.get(product.module) == 1
        and len(products) == 1
        and product.is_own_input
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


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse a ReLU module that has hooks, or that the network holds under several names."""
    others = _other_names(model)
    for name in names:
        if _has_hooks(model.get_submodule(name)):
            raise SpecError(
                f"the activation module {name} has hooks, which a quantizer in its place would "
                "not have; pass example= to prepare(), which leaves the module where it is"
            )
        if name in others:
            raise SpecError(
                f"the activation module {name} is also {others[name][0]}, so both would share one "
                "step; pass example= to prepare(), which gives every use a step of its own"
            )


def differences_in_activations(model: nn.Module, plan: Plan, picture: Picture) -> list[str]:
    """In what version 1 of the preparation put other quantizers, in words.

    Args:
        model: prepared network.
        plan: of it.
        picture: of it, before inputs got their quantizers.
    """
    names = activation_quantizers(model)
    at_calls = [name for name in names if f"{CALL_SITES}." in name]
    unsigned = [
        name
        for name, quantizer in names.items()
        if name.endswith(f".{INPUT_QUANTIZER}") and not quantizer.signed
    ]
    # it knew the image only as long as nothing had changed it, no constants, and no lost signs
    missing = [
        product.module
        for product in picture.products
        if product.weight is not None
        and plan.activation(product.module).is_quantized
        and isinstance(model.get_submodule(product.module), LAYER_TYPES)
        and f"{product.module}.{INPUT_QUANTIZER}" not in names
        and _was_float(product.inputs[0])
    ]
    on_image = [call.module for call in picture.calls if call.stays_float and call.is_activation]
    return [
        *(f"had no quantizer at {name}" for name in at_calls[:1]),
        *(f"had a signed quantizer at {name}, if any" for name in unsigned[:1]),
        *(f"had a quantizer before {name}" for name in missing[:1]),
        *(f"had a quantizer at {name}" for name in on_image[:1]),
    ]


def _was_float(value: Value) -> bool:
    is_changed_image = value.kind == "image" and value.through != ""
    return is_changed_image or value.kind in ("constant", "float")


def activation_quantizers(model: nn.Module) -> dict[str, QuantizedActivation]:
    """Dotted name -> activation quantizer, in the order of registration."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedActivation)}
