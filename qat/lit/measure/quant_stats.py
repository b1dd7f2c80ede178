"""Quantization statistics: a callback that logs them while a network trains."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from qat.errors import SpecError
from qat.lit.measure.flips import flip_rate, quantized_weights
from qat.quantize.phases import Phases


class QuantStats(Callback):
    """Logs how the quantized weights move, every n optimizer steps.

        quant/flip_rate   share of the codes that the step changed, 0..1
        quant/distance    ||w - Q(w)|| / ||w|| over all quantized weights, 0 (on the grid) ..

    Both compare one step's ends only, so a resumed run logs the same numbers.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        phases: of the network that is looked at; None takes those of the module in training.
        suffix: of the names that are logged.

    Raises:
        SpecError: every_n_steps < 1.
    """

    def __init__(
        self, every_n_steps: int = 50, *, phases: Phases | None = None, suffix: str = ""
    ) -> None:
        if every_n_steps < 1:
            raise SpecError(
                f"callbacks.quant_stats.every_n_steps must be >= 1; got {every_n_steps}"
            )
        self._every, self._phases, self._suffix = every_n_steps, phases, suffix
        self._codes: list[Tensor] | None = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Remember the codes before a step that is to be measured."""
        phases = self._of(pl_module)
        own = next((o for o in phases.optimizers if o.state is optimizer.state), None)
        # its own steps: the trainer counts those of all optimizers
        due = own is not None and (own.completed_steps + 1) % self._every == 0
        if due and phases.is_quantized:
            pairs = quantized_weights(phases)
            self._codes = [quantizer.encode(w)[0] for w, quantizer in pairs] or None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Compare with the codes after it."""
        if self._codes is None:
            return
        before, self._codes = self._codes, None
        after = []
        squares = torch.zeros(2, dtype=torch.float64)
        for w, quantizer in quantized_weights(self._of(pl_module)):
            codes, scale = quantizer.encode(w)
            after.append(codes)
            gap = w - quantizer.decode(codes, scale)
            squares += torch.stack([gap.norm(), w.norm()]).double().square().cpu()
        distance = float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 0.0
        logged = {
            f"quant/flip_rate{self._suffix}": flip_rate(before, after),
            f"quant/distance{self._suffix}": distance,
        }
        # straight to the loggers: Lightning would repeat the numbers in later rows
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=step)

    def _of(self, module: LightningModule) -> Phases:
        return self._phases or module.phases  # type: ignore[return-value]
