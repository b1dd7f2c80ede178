"""Turn a float network into one that trains on few levels: quantizers in, weights untouched."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import CheckpointError, SpecError
from qat.flow import evaluating, trace
from qat.nn.activation import ActivationQuantizer
from qat.plan import RELU_TYPES, activation_options, check_overrides
from qat.spec import ActivationSpec, QuantSpec

INPUT_QUANTIZER = "input_quantizer"


def prepare(model: nn.Module, spec: QuantSpec, *, example: Tensor | None = None) -> nn.Module:
    """Put activation quantizers into `model`, in place; weights stay plain parameters.

    Every ReLU and ReLU6 module becomes an `ActivationQuantizer`. With an `example`, the network is
    run once and every conv or linear layer whose input is then still float gets a signed quantizer
    on its input; inputs that average levels of a quantizer (global pooling) and, unless
    `spec.input_bits` is set, the image itself stay as they are.

    Args:
        model: any network whose ReLUs are modules, one per use.
        spec: what to quantize.
        example: images (N, C, H, W) for the run. Without it only ReLUs are found, and one ReLU
            module that is called several times gets one step for all its uses.

    Returns:
        `model` itself.

    Raises:
        SpecError: a ReLU module is used several times (checked with `example`), or an override
            matches no layer.
    """
    check_overrides(model, spec)
    relus = {
        name: options
        for name, module in model.named_modules()
        if type(module) in RELU_TYPES and (options := activation_options(spec, name)).is_quantized
    }
    _check_names(model, relus)
    if example is not None:
        _check_uses(model, relus, example)
    for name, options in relus.items():
        ceiling = 6.0 if isinstance(model.get_submodule(name), nn.ReLU6) else None
        _replace(model, name, _quantizer(options, ceiling=ceiling))
    added = _quantize_inputs(model, spec, example) if example is not None else 0
    if spec.activation.is_quantized and not relus and added == 0:
        warnings.warn(
            "prepare() found no activation to quantize: no nn.ReLU module"
            + ("" if example is not None else "; pass example= to quantize the layers' inputs"),
            stacklevel=2,
        )
    return model


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Dotted name -> activation quantizer, in the order of registration."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationQuantizer)}


def enable_activations(model: nn.Module, enabled: bool) -> None:
    """Let all activation quantizers act as staircases, or as what they replaced."""
    for quantizer in activation_quantizers(model).values():
        quantizer.enabled = enabled


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Strict load of float or of quantized weights into a prepared network.

    Args:
        model: prepared network.
        state: its own state dict, or that of the float network it was made from.

    Returns:
        Names of the steps that kept their start because `state` holds none (float weights).

    Raises:
        CheckpointError: keys or shapes differ, or only some of the steps are there.
    """
    steps = [f"{name}.step" for name in activation_quantizers(model)]
    absent = [key for key in steps if key not in state]
    if absent and len(absent) < len(steps):
        raise CheckpointError(
            f"{len(absent)} of {len(steps)} activation steps are missing (first: {absent[0]}); "
            "the weights belong to a network with other quantizers"
        )
    own = model.state_dict()
    wanted = set(own) - set(absent)
    problems = [f"missing {key}" for key in sorted(wanted - set(state))]
    problems += [f"unexpected {key}" for key in sorted(set(state) - wanted)]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the network wants {tuple(own[key].shape)}"
        for key in sorted(wanted & set(state))
        if state[key].shape != own[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError("weights do not fit: " + "; ".join(problems[:3]) + more)
    model.load_state_dict({**own, **state})
    return absent


def _quantizer(
    options: ActivationSpec, *, signed: bool = False, ceiling: float | None = None
) -> ActivationQuantizer:
    return ActivationQuantizer(
        options.bits,
        options.derivative,
        step_derivative=options.step_derivative,
        signed=signed,
        learned=options.step_rate > 0,
        ceiling=ceiling,
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.to(_device(model)))


def _device(model: nn.Module) -> torch.device:
    """Where the network lives; a quantizer's step has to live there too."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _quantize_inputs(model: nn.Module, spec: QuantSpec, example: Tensor) -> int:
    """Signed quantizers on layer inputs that are still float; returns how many."""
    modules = dict(model.named_modules())
    added = 0
    for name, flow in trace(model, example).items():
        options = activation_options(spec, name)
        if flow.source.kind == "image" and spec.input_bits is not None:
            options = replace(options, bits=spec.input_bits)
        elif flow.source.kind != "float" or not options.is_quantized:
            continue
        quantizer = _quantizer(options, signed=True).to(_device(model))
        modules[name].add_module(INPUT_QUANTIZER, quantizer)
        modules[name].register_forward_pre_hook(_quantize_input)
        added += 1
    return added


def _quantize_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook; a module-level function, so that networks can be copied and pickled."""
    quantizer: ActivationQuantizer = module.get_submodule(INPUT_QUANTIZER)  # type: ignore[assignment]
    return (quantizer(args[0]), *args[1:])


def _check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse a ReLU module that the network holds under several names."""
    every = list(model.named_modules(remove_duplicate=False))
    for name in names:
        module = model.get_submodule(name)
        others = [other for other, m in every if m is module and other != name]
        if others:
            raise SpecError(
                f"the activation module {name} is also {others[0]}, so both would share one step; "
                "give every use a module of its own"
            )


def _check_uses(model: nn.Module, names: Iterable[str], example: Tensor) -> None:
    """Refuse a ReLU module that one forward pass calls several times."""
    calls: Counter[str] = Counter()
    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(_counting(calls, name))
            hooks.callback(hook.remove)
        model(example)
    shared = [name for name, count in calls.items() if count > 1]
    if shared:
        raise SpecError(
            f"the activation module {shared[0]} is used {calls[shared[0]]} times in one forward "
            "pass, so its uses would share one step; give every use a module of its own"
        )


def _counting(calls: Counter[str], name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        calls[name] += 1

    return hook
