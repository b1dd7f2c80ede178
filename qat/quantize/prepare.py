"""Preparation of a float network for training on few levels: quantizers in, weights untouched."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.errors import CheckpointError, SpecError
from qat.nn.activation import ActivationQuantizer, QuantizedActivation
from qat.nn.learned_clip import DorefaActivation, LsqActivation, PactActivation
from qat.nn.parametrization import WeightParametrization
from qat.nn.sign_activation import SignActivation
from qat.quantize.flow import trace
from qat.quantize.modes import evaluating
from qat.quantize.plan import (
    RELU_TYPES,
    Plan,
    parametrization,
    resolve,
    weight_parametrizations,
)
from qat.spec.quant import ActivationSpec, QuantSpec

INPUT_QUANTIZER = "input_quantizer"


def prepare(
    model: nn.Module, spec: QuantSpec | Plan, *, example: Tensor | None = None
) -> nn.Module:
    """Put activation quantizers into `model`, in place; weights stay plain parameters.

    Every ReLU and ReLU6 module becomes a `QuantizedActivation` of the spec's kind. Weights with an
    in-graph method (lsq, dorefa, reste, biper) are the exception: they get a parametrization, and
    what is learned there starts from the weights that the network holds now. With an `example`, the
    network is run once and every conv or linear layer whose input is then still float gets a signed
    quantizer on its input; inputs that average levels of a quantizer (global pooling) and, unless
    `spec.input_bits` is set, the image itself stay as they are.

    Args:
        model: any network whose ReLUs are modules, one per use.
        spec: what to quantize, or the network's plan.
        example: images (N, C, H, W) for the run. Without it only ReLUs are found, and one ReLU
            module that is called several times gets one step for all its uses.

    Returns:
        `model` itself.

    Raises:
        SpecError: a ReLU module is used several times (checked with `example`), an override
            matches no layer, or quant.activation.shift=channel without `example`.
    """
    plan = resolve(model, spec)
    relus = {
        name: options
        for name, module in model.named_modules()
        if type(module) in RELU_TYPES and (options := plan.activation(name)).is_quantized
    }
    _check_names(model, relus)
    channels: Mapping[str, int] = {}
    if example is not None:
        channels = _check_uses(model, relus, example)
    for name, options in relus.items():
        ceiling = 6.0 if isinstance(model.get_submodule(name), nn.ReLU6) else None
        _replace(model, name, _quantizer(options, channels.get(name), ceiling=ceiling))
    _parametrize_weights(model, plan)
    added = _quantize_inputs(model, plan, example) if example is not None else 0
    if plan.spec.activation.is_quantized and not relus and added == 0:
        warnings.warn(
            "prepare() found no activation to quantize: no nn.ReLU module"
            + ("" if example is not None else "; pass example= to quantize the layers' inputs"),
            stacklevel=2,
        )
    return model


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


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Strict load of float or of quantized weights into a prepared network.

    Args:
        model: prepared network.
        state: its own state dict, or that of the float network it was made from.

    Returns:
        Names of the quantizers' own entries (steps, scales, shifts) that kept their start because
        `state` holds none of them (float weights).

    Raises:
        CheckpointError: keys or shapes differ, or only some of the quantizers' entries are there.
    """
    state, entries = _renamed(model, state), quantizer_entries(model)
    absent = [key for key in entries if key not in state]
    if absent and len(absent) < len(entries):
        raise CheckpointError(
            f"{len(absent)} of {len(entries)} entries of quantizers are missing (first: "
            f"{absent[0]}); the weights belong to a network with other quantizers"
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
    problems += [
        f"{key} is {state[key].dtype}, the network wants {own[key].dtype}"
        for key in sorted(wanted & set(state))
        if state[key].is_floating_point() != own[key].is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError("weights do not fit: " + "; ".join(problems[:3]) + more)
    model.load_state_dict({**own, **state})
    return absent


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Refuse a network with a weight or statistic that is no number: its answers would be none.

    Args:
        model: network.
        name: what its weights came from, for the message.

    Raises:
        CheckpointError: NaN or infinity in the state dict.
    """
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{name} holds values in {key} that are no numbers (NaN or infinite): the training "
                "diverged or the file was changed; use an earlier checkpoint"
            )


def _renamed(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` with plain weights under the names that parametrized layers keep them by."""
    renamed = dict(state)
    for name, _ in weight_parametrizations(model):
        plain = f"{name}.weight" if name else "weight"
        if plain in renamed:
            latent = plain.removesuffix("weight") + "parametrizations.weight.original"
            renamed[latent] = renamed.pop(plain)
    return renamed


def quantizer_entries(model: nn.Module) -> list[str]:
    """Keys of a state dict that a float network does not have."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, (QuantizedActivation, WeightParametrization))
        for key in module.state_dict()
    ]


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


def _parametrize_weights(model: nn.Module, plan: Plan) -> None:
    """Register the in-graph quantizers; their scales start from the weights as they are."""
    for name, weight in plan.weights.items():
        if weight.spec.is_in_graph:
            layer = model.get_submodule(name)
            quantizer = parametrization(weight.spec).to(_device(model))
            quantizer.start(layer.weight.detach())  # type: ignore[operator]
            parametrize.register_parametrization(layer, "weight", quantizer)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.to(_device(model)))


def _device(model: nn.Module) -> torch.device:
    """Where the network lives; a quantizer's step has to live there too."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _quantize_inputs(model: nn.Module, plan: Plan, example: Tensor) -> int:
    """Signed quantizers on layer inputs that are still float; returns how many."""
    image_bits = plan.spec.input_bits
    modules = dict(model.named_modules())
    added = 0
    for name, flow in trace(model, example).items():
        options = plan.activation(name)
        if flow.source.kind == "image" and image_bits is not None:
            kind = "staircase" if options.kind == "sign" else options.kind
            options = replace(options, bits=image_bits, kind=kind, shift="none")
        elif flow.source.kind != "float" or not options.is_quantized:
            continue
        options = replace(options, shift="none")  # a layer's input has no norm of its own
        quantizer = _quantizer(options, signed=True).to(_device(model))
        modules[name].add_module(INPUT_QUANTIZER, quantizer)
        modules[name].register_forward_pre_hook(_quantize_input)
        added += 1
    return added


def _quantize_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook; a module-level function, so that networks can be copied and pickled."""
    quantizer: QuantizedActivation = module.get_submodule(INPUT_QUANTIZER)  # type: ignore[assignment]
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


def _check_uses(model: nn.Module, names: Iterable[str], example: Tensor) -> dict[str, int]:
    """Channels at each ReLU module; refuses one that one forward pass calls several times."""
    calls: Counter[str] = Counter()
    channels: dict[str, int] = {}
    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(_counting(calls, channels, name))
            hooks.callback(hook.remove)
        model(example)
    shared = [name for name, count in calls.items() if count > 1]
    if shared:
        raise SpecError(
            f"the activation module {shared[0]} is used {calls[shared[0]]} times in one forward "
            "pass, so its uses would share one step; give every use a module of its own"
        )
    return channels


def _counting(calls: Counter[str], channels: dict[str, int], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        calls[name] += 1
        channels[name] = args[0].shape[1]

    return hook
