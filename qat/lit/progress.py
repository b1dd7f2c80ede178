"""What a run shows of its progress: a bar on a terminal, else a line per epoch.

Epochs that are printed count from 1, as they do on pages and in summary.json; those in tables
(metrics.csv, layers.csv) are Lightning's, from 0.
"""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override


class EpochBar(RichProgressBar):
    """Lightning's bar, which would count epochs from 0 up to one less than there are."""

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        words = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return words.ljust(len(self.validation_description))  # else the bars jump


class EpochLines(Callback):
    """One line per epoch, for terminals and logs that cannot show a progress bar."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print phase and validation metrics."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        phase = "quantized" if getattr(pl_module, "is_quantized", True) else "float"
        scores = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in sorted(scores.items()))
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {phase:9}  {numbers}",
            flush=True,
        )
