"""Fits of other people's trainers: which can be served, and how long their phases are."""

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qat.errors import QatError
from qat.lit.quantized import LitQuantized
from qat.lit.resume.guards import refuse_unsupported
from qat.quantize.activations import activation_quantizers
from qat.spec.lightning import NO_MPS

_DDP = "ddp_find_unused_parameters_true"
# length of a warm start in steps that an optimizer makes by hand, at any rate
UNKNOWN = 1 << 62


def refuse(trainer: Trainer, module: LightningModule) -> None:
    """Raise before anything runs if a trainer or a module cannot be right with `Quantize`.

    Raises:
        QatError: naming what, and the cure.
    """
    refuse_unsupported(trainer)
    if trainer.strategy.root_device.type == "mps":
        raise QatError(f"{NO_MPS}; give Trainer(accelerator='cpu')")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise QatError(
            f"Quantize needs the whole network in every process, and the strategy is "
            f"{type(trainer.strategy).__name__}; give Trainer(strategy={_DDP!r})"
        )
    if isinstance(module, LitQuantized):
        raise QatError(f"{type(module).__name__} quantizes by itself; leave Quantize out")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if name in ("LearningRateFinder", "BatchSizeFinder"):
            raise QatError(
                f"{name} tries trainings that begin and end as the float network; find the value "
                "in a trainer without Quantize"
            )
        if getattr(callback, "save_weights_only", False):
            raise QatError(
                f"{name}(save_weights_only=True) has no room for steps and phase, without which "
                "quantized weights say nothing; leave it out, or ship by save_packed()"
            )


def check_finds_unused(wrapped: object, net: nn.Module) -> None:
    """Refuse DDP that waits for the gradients of steps which the float phase does not use.

    Args:
        wrapped: the module as the strategy holds it.
        net: prepared, with a float phase before it.

    Raises:
        QatError: with the strategy that does not.
    """
    has_steps = any(
        isinstance(step := getattr(q, "step", None), nn.Parameter) and step.requires_grad
        for q in activation_quantizers(net).values()
    )
    is_waiting = isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters
    if has_steps and is_waiting:
        raise QatError(
            "the float warm start does not use the steps of activations, and DDP would wait for "
            f"their gradients; give Trainer(strategy={_DDP!r}), or no warm start"
        )


def lengths(
    trainer: Trainer, module: LightningModule, *, steps: int | None, warm_epochs: int
) -> tuple[int, int]:
    """Optimizer steps of a fit, and of its float warm start, or UNKNOWN.

    Args:
        trainer: at the start of a fit.
        module: that is fitted.
        steps: of the fit, if they are known better.
        warm_epochs: float epochs.

    Raises:
        QatError: the fit has no end, or no quantized phase.
    """
    trainer.fit_loop.setup_data()
    count = trainer.estimated_stepping_batches if steps is None else steps
    batches = trainer.num_training_batches
    if not 0 < count < math.inf or (warm_epochs and batches == math.inf):
        raise QatError(
            "the trainer has no end, or its epochs no length (max_epochs=-1, batches without a "
            "number), and the phases are parts of them; give Trainer(max_epochs=...), or "
            "Quantize(steps=...) and no warm start"
        )
    if not warm_epochs or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return int(count), 0
    accumulated = trainer.accumulate_grad_batches if module.automatic_optimization else 1
    warm = warm_epochs * math.ceil(batches / accumulated)
    if warm >= count:
        raise QatError(
            f"warm_start_epochs={warm_epochs} are {warm} steps and the fit has {int(count)}: "
            "nothing would be quantized; shorten the one or lengthen the other"
        )
    return int(count), int(warm) if module.automatic_optimization else UNKNOWN
