"""Calibration: steps from the first batches, scales from the weights."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qat.nn.activation import QuantizedActivation
from qat.quantize.activations import activation_quantizers
from qat.quantize.made_weights import start_made
from qat.quantize.modes import training_mode_without_traces
from qat.quantize.plan import Plan, resolve
from qat.quantize.prepare import enable_quantizers
from qat.quantize.weights import latent_weight, weight_parametrizations
from qat.spec.quant import QuantSpec


@torch.no_grad()
def start_steps(
    model: nn.Module, spec: QuantSpec | Plan, batches: Iterable[Tensor], *, every: bool = False
) -> list[str]:
    """Start what the quantizers learn from data and weights, and enable all of them.

    Activation quantizers with `step_start="batches"`, all signed ones (no theory says that their
    inputs have deviation 1) and all lsq ones measure their inputs; a staircase gets

        alpha = deviation * (optimal step for deviation 1)

    where the deviation is the root mean square of the positive inputs (signed: of all inputs) of
    the float network. BatchNorm uses the batches' own statistics, as in training; its buffers are
    left as they were. The others start from the half-normal table. The scales of in-graph weights
    start from the weights as they are now.

    Args:
        model: prepared network.
        spec: the options it was prepared with, or its plan.
        batches: training images; a few batches suffice.
        every: whether all quantizers measure, whatever their options say.

    Returns:
        Names of the activation quantizers that were measured.
    """
    plan = resolve(model, spec)
    chosen = {
        name: quantizer
        for name, quantizer in activation_quantizers(model).items()
        if every
        or quantizer.signed
        or quantizer.needs_batches
        or plan.activation(name).step_start == "batches"
    }
    moments = {name: [0.0, 0] for name in chosen}
    if chosen:
        with ExitStack() as undo, training_mode_without_traces(model):
            enable_quantizers(model, False)
            for name, quantizer in chosen.items():
                hook = quantizer.register_forward_pre_hook(
                    _measuring(moments[name]), with_kwargs=True
                )
                undo.callback(hook.remove)
            for images in batches:
                model(images)
    for name, quantizer in chosen.items():
        total, count = moments[name]
        if total > 0:
            quantizer.start_from(total / count)
    for name, weight in weight_parametrizations(model):
        weight.start(latent_weight(model, name))
    start_made(model, plan)
    enable_quantizers(model, True)
    return list(chosen)


def _measuring(moment: list[float]) -> Callable[..., None]:
    """A hook that adds (sum, count) of what the quantizer starts from."""

    def hook(module: QuantizedActivation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        total, count = module.measure(args[0] if args else kwargs["input"])
        moment[0] += total
        moment[1] += count

    return hook
