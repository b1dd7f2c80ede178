"""Warm-start checkpoint: the float weights at the switch, kept for a comparison."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback, LightningModule, Trainer

from qat.lit.resume.weights_alone import weights_alone
from qat.storage.checkpoint import save_deflated


class KeepWarmStart(Callback):
    """Keeps the float network at the end of the warm start in `folder/warm_start.ckpt`.

    Args:
        folder: `RUN/checkpoints`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "warm_start.ckpt"

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save before the first quantized step; callbacks run before the module switches."""
        optimizer = pl_module.quant_optimizer
        steps: int = pl_module.warm_steps  # type: ignore[assignment]
        done: int = optimizer.completed_steps  # type: ignore[assignment, union-attr]
        if pl_module.is_quantized or not 0 < steps <= done:
            return
        if trainer.is_global_zero:
            place = {
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "pytorch-lightning_version": L.__version__,  # Lightning reads no file without it
            }
            # once in a run, so that half a second for fewer bytes is not missed
            save_deflated(weights_alone(pl_module, **place), self._path)
