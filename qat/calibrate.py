"""Start the steps of activation quantizers from the first batches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qat.nn.activation import ActivationQuantizer
from qat.plan import activation_options
from qat.spec import QuantSpec
from qat.surgery import activation_quantizers, enable_activations


@torch.no_grad()
def start_steps(model: nn.Module, spec: QuantSpec, batches: Iterable[Tensor]) -> list[str]:
    """Start alpha of the quantizers that measure their inputs, and enable all quantizers.

    Those with `step_start="batches"` and all signed ones (no theory says that their inputs have
    deviation 1) get

        alpha = deviation * (optimal step for deviation 1)

    where the deviation is the root mean square of the positive inputs (signed: of all inputs) of
    the network with float activations. BatchNorm uses the batches' own statistics, as in training;
    its buffers are left as they were. The others start from the half-normal table.

    Args:
        model: prepared network.
        spec: the options it was prepared with.
        batches: training images; a few batches suffice.

    Returns:
        Names of the quantizers that were measured.
    """
    chosen = {
        name: quantizer
        for name, quantizer in activation_quantizers(model).items()
        if quantizer.signed or activation_options(spec, name).step_start == "batches"
    }
    moments = {name: torch.zeros(2, dtype=torch.float64) for name in chosen}
    if chosen:
        with ExitStack() as undo, _training_mode_without_traces(model):
            enable_activations(model, False)
            undo.callback(enable_activations, model, True)
            for name, quantizer in chosen.items():
                hook = quantizer.register_forward_pre_hook(_measuring(moments[name]))
                undo.callback(hook.remove)
            for images in batches:
                model(images)
    for name, quantizer in chosen.items():
        squares, count = moments[name].tolist()
        if squares > 0:
            quantizer.start_step((squares / count) ** 0.5)
    enable_activations(model, True)
    return list(chosen)


def _measuring(moment: Tensor) -> Callable[..., None]:
    """A hook that adds (sum of squares, count) of the inputs that the levels have to cover."""

    def hook(module: ActivationQuantizer, args: tuple[Any, ...]) -> None:
        x = args[0].double()
        covered = x if module.signed else x.clamp(min=0)
        count = x.numel() if module.signed else int((x > 0).sum())
        moment.add_(torch.tensor([float(covered.square().sum()), count], dtype=torch.float64))

    return hook


@contextmanager
def _training_mode_without_traces(model: nn.Module) -> Iterator[None]:
    """Training mode inside; modes and buffers (BatchNorm statistics) as before on exit."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
