"""Diagnostics: what the coarse gradient and the quantized weights do while a network trains."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from qat.data.dataset import Batch
from qat.data.module import first_batches
from qat.errors import SpecError
from qat.lit.measure.coarse_gradient import Look, look
from qat.lit.measure.flips import occupancy, oscillation, quantized_weights, sampled_codes


class Diagnostics(Callback):
    """Logs, every n optimizer steps of the quantized phase:

        quant/dead_gradients   share of the activation quantizers' inputs whose coarse gradient is
                               exactly 0, on a probe batch of training images
        quant/gradient_cosine  cosine of the coarse gradient with finite differences of the loss
                               (`coarse_gradient.gradient_cosine`), on the same batch
        quant/oscillation      share of the weights' steps that flip back within the last w steps
        quant/occupancy        mean share of the last w steps that a weight spends at its most
                               visited level, 1 / w .. 1
        quant/settled          share of the weights that stayed at one level all that time

    The last three follow a fixed sample of weights (`qat.lit.measure.flips`). Training is bit for
    bit the same with and without the callback, and a resumed run logs the same numbers.

    Args:
        every_n_steps: n, >= window.
        window: w, optimizer steps, >= 2.
        images: size of the probe batch, >= 2.
        directions: random directions of the finite differences, >= 1.
        width: of the finite differences, relative to the weights of each layer, in (0, 1].

    Raises:
        SpecError: an option is out of range.
    """  # noqa: D415

    def __init__(
        self,
        every_n_steps: int = 100,
        *,
        window: int = 10,
        images: int = 16,
        directions: int = 3,
        width: float = 0.01,
    ) -> None:
        wrong = {
            f"window={window}": not window >= 2,
            f"every_n_steps={every_n_steps}": every_n_steps < window,
            f"images={images}": images < 2,
            f"directions={directions}": directions < 1,
            f"width={width}": not 0 < width <= 1,
        }
        for option, is_wrong in wrong.items():
            if is_wrong:
                raise SpecError(
                    f"callbacks.diagnostics.{option} is out of range; needed are window >= 2, "
                    "every_n_steps >= window, images >= 2, directions >= 1 and width in (0, 1]"
                )
        self._every, self._window = every_n_steps, window
        self._images, self._directions, self._width = images, directions, width
        self._codes: list[Tensor] = []
        self._histogram: list[int] = []
        self._batch: Batch | None = None
        self._seen = 0

    # -- state: an open window goes into the checkpoint -------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The codes of the open window, and the histogram of those before."""
        return {"codes": list(self._codes), "histogram": list(self._histogram)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the open window."""
        self._codes = [codes.cpu() for codes in state_dict["codes"]]
        self._histogram = list(state_dict["histogram"])

    @property
    def occupancy(self) -> tuple[int, ...]:
        """Weights by the steps (0 .. w) at their most visited level, summed over all windows."""
        return tuple(self._histogram)

    # -- measuring --------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; what a checkpoint holds is loaded after this."""
        if stage == "fit":
            self._codes, self._histogram, self._batch = [], [], None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from where the run stands."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Follow the window, and measure at its end."""
        step = trainer.global_step
        quantizes: bool = pl_module.spec.has_quantizers  # type: ignore[assignment, union-attr]
        if step == self._seen or not pl_module.is_quantized or not quantizes:
            return
        if not trainer.is_global_zero:
            return
        self._seen = step
        to_go = -step % self._every
        if to_go >= self._window:
            return
        weights = quantized_weights(pl_module.phases)  # type: ignore[arg-type]
        if weights:
            self._codes.append(sampled_codes(weights))
        if to_go == 0:
            logged = {**self._window_metrics(), **self._probe_metrics(trainer, pl_module)}
            # straight to the loggers: Lightning would repeat the numbers in later rows
            for logger in trainer.loggers if logged else []:
                logger.log_metrics(logged, step=step)

    def _window_metrics(self) -> dict[str, float]:
        codes, self._codes = self._codes, []
        if len(codes) < self._window:  # the phase began inside the window
            return {}
        stacked = torch.stack(codes)
        stays = occupancy(stacked)
        counts = torch.bincount((stays * self._window).round().long(), minlength=self._window + 1)
        before = self._histogram or [0] * len(counts)
        self._histogram = [a + b for a, b in zip(before, counts.tolist(), strict=True)]
        return {
            "quant/oscillation": oscillation(stacked),
            "quant/occupancy": float(stays.mean()),
            "quant/settled": float((stays == 1).float().mean()),
        }

    def _probe_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        if self._batch is None:  # decoding and augmenting it takes longer than a look
            batch = next(iter(first_batches(trainer.datamodule, 1)))  # type: ignore[attr-defined]
            few = slice(self._images)
            self._batch = (
                batch[few] if isinstance(batch, Tensor) else (batch[0][few], batch[1][few])
            )
        batch = module.transfer_batch_to_device(self._batch, module.device, 0)
        net: Any = module.net

        def loss() -> Tensor:
            # in float32 also where training is not: halves would lose differences and count
            # gradients that underflow without their scaler as dead
            value: Tensor = module.objective(batch)["loss"]  # type: ignore[operator]
            return value

        seen: Look = look(
            net,
            loss,
            width=self._width,
            directions=self._directions,
            seed=trainer.global_step,
        )
        found = {"quant/dead_gradients": seen.dead, "quant/gradient_cosine": seen.cosine}
        return {name: value for name, value in found.items() if value is not None}
