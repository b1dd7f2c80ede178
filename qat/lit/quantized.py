"""LitQuantized: a prepared network in training with an update rule, judged on hard weights."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qat.data.dataset import Batch, fingerprint, images_of
from qat.data.loader import limited
from qat.data.module import ImageData, first_batches
from qat.data.sampler import EpochBatchSampler
from qat.errors import CheckpointError
from qat.lit.epoch_means import EpochMeans
from qat.lit.learning_rate import phase_factor
from qat.lit.resume.guards import TeardownOnError, refuse_complex, refuse_unsupported
from qat.lit.resume.run_checkpoint import is_at_end
from qat.optim.groups import parameter_groups
from qat.optim.quant_optimizer import QuantOptimizer
from qat.quantize.batchnorm import reestimated_batchnorm
from qat.quantize.phases import Phases
from qat.quantize.plan import Plan, weight_projections
from qat.quantize.preparation_version import check_preparation, preparation_of
from qat.ranks import group as ranks
from qat.ranks.batchnorm import synced_statistics
from qat.ranks.share import weight
from qat.spec.quant import QuantSpec
from qat.spec.run import (
    SchedulerSpec,
    TrainingSpec,
)


class OptimizerFactory(Protocol):
    """A partial of a torch optimizer: takes parameter groups."""

    keywords: dict[str, Any]

    def __call__(self, params: Any) -> Optimizer:
        """Build the optimizer."""


class LitQuantized(L.LightningModule):
    """Trains on few levels: float warm start, then the quantized phase.

    One fit with automatic optimisation. During the first `warm_start_epochs` the network is the
    float one (activations as ReLU, validation on float weights). At the switch alpha is started,
    and optimizer state and learning rate begin anew. From then on validation and test see hard
    weights; while BinaryRelax relaxes, `val/<score>_relaxed` tells the score of the weights that
    the gradient sees.

    What is learned is left to `objective`, `target` and `evaluate` of a subclass.

    Args:
        net: prepared network.
        spec: the options it was prepared with, or its plan.
        optimizer: partial of a torch optimizer with `lr` among its keywords.
        scheduler: factor of the learning rate within each phase.
        training: loop options.
        warm_start_epochs: float epochs at the start.
        measures_steps: False keeps the alphas that were loaded with the weights.
        ema_decay: of the average that is judged in place of the weights; None for none.

    Attributes:
        score: name of the share of images for which the network says `target`.
        monitor: logged metric by which an epoch is selected, None for none.
        rate_factor: of every learning rate, below 1 after a return to an earlier checkpoint.
        is_shared: whether all processes work on shares of one batch right now.
        syncs_batchnorm: whether BatchNorm then takes the statistics of the whole batch.

    Logs: train/<name> of `objective` per epoch, val/<score>_relaxed while 0 < theta < 1,
    quant/theta.
    """

    score: str = "acc"
    monitor: str | None = "val/acc"

    def __init__(
        self,
        net: nn.Module,
        spec: QuantSpec | Plan,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerSpec,
        training: TrainingSpec,
        warm_start_epochs: int = 0,
        measures_steps: bool = True,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.phases = Phases(net, spec, measures_steps=measures_steps, ema_decay=ema_decay)
        self.plan = self.phases.plan
        self.spec = self.plan.spec
        self.training_spec = training
        self.scheduler_spec = scheduler
        self.warm_start_epochs = warm_start_epochs
        self.last_loss: Tensor | None = None
        self.is_shared = self.syncs_batchnorm = False
        self.rate_factor = 1.0
        self.warm_steps = self.total_steps = 0
        self._make_base = optimizer
        self._train_means = EpochMeans()
        self._before: tuple[list[Tensor], dict[str, Any]] = [], {}
        self._shown = ExitStack()

    # -- what a subclass says ---------------------------------------------------------------------

    def objective(self, batch: Batch) -> dict[str, Tensor]:
        """The scalar "loss" of a batch, and further means over it to be logged by name."""
        raise NotImplementedError

    def target(self, batch: Batch) -> Tensor:
        """The classes (N,) that the network should say for a batch."""
        raise NotImplementedError

    def evaluate(self, batch: Batch, part: str) -> None:
        """Measure a batch of the part "val" or "test" and log what was measured."""
        raise NotImplementedError

    def learned_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters for the optimizer."""
        return self.net.named_parameters()

    @property
    def is_quantized(self) -> bool:
        """Whether the quantized phase has begun."""
        return self.phases.is_quantized

    @property
    def quant_optimizer(self) -> QuantOptimizer | None:
        """The optimizer of this fit, None outside of one."""
        return next(iter(self.phases.optimizers), None)

    # -- optimizer --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse what would train on weights that are not ours, before anything runs."""
        refuse_unsupported(self.trainer)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The rule around the base optimizer; the only place where epochs become steps."""
        self._shown.close()
        if self.phases.optimizers:  # of another fit; after a checkpoint there are none
            self.phases.forget()
        per_epoch = self._steps_per_epoch()
        total = self.total_steps = per_epoch * (self.trainer.max_epochs or 1)
        self.warm_steps = min(total, self.warm_start_epochs * per_epoch)
        keywords = self._make_base.keywords
        groups = parameter_groups(
            self.learned_parameters(),
            lr=keywords["lr"],
            weight_decay=keywords.get("weight_decay"),
            step_rate=self.spec.activation.step_rate,
            decay=self.training_spec.decay,
            projected=weight_projections(self.net, self.plan),
        )
        (optimizer,) = self.phases.wrap([self._make_base(groups)], [total], [self.warm_steps])
        factor = phase_factor(self.scheduler_spec, self.warm_steps, total)
        scheduler = LambdaLR(optimizer, lambda step: self.rate_factor * factor(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps_per_epoch(self) -> int:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        batches = limited(data.batches_per_epoch, self.trainer.limit_train_batches)
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))

    # -- training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile in place, so that names in checkpoints stay those of the plain network."""
        if self.trainer.max_epochs == 0:  # no batch will come to switch at
            self._come_to_phase()
        self.phases.enable()
        if self.training_spec.compile:
            self.net.compile(fullgraph=True)

    def on_train_start(self) -> None:
        """Rates of a checkpoint were saved before the run went back to it."""
        scheduler: Any = self.lr_schedulers()
        if self.rate_factor != 1:
            rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, (rate, factor) in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(scheduler.last_epoch)

    def configure_callbacks(self) -> list[Callback]:
        """What every trainer of this module needs."""
        return [TeardownOnError()]

    def teardown(self, stage: str) -> None:
        """Show the forward weights again, also after an exception in an evaluation."""
        self._shown.close()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Switch from the float phase to the quantized one; all processes start it alike."""
        self._come_to_phase()

    def _come_to_phase(self) -> None:
        if self.phases.is_due:
            ranks.copy_from_first(self.net.buffers())
        if self.phases.advance(lambda: self._images(self.training_spec.start_batches)):
            ranks.copy_from_first(self.net.parameters())
            self.phases.begin_average()

    def _images(self, count: int) -> Iterator[Tensor]:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        taken: Callable[[Any], Tensor] = self.trainer.precision_plugin.convert_input
        return (taken(images_of(batch)).to(self.device) for batch in first_batches(data, count))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of a batch; of a share, weighed so that ranks average to the batch's."""
        self.is_shared = ranks.size() > 1
        with synced_statistics() if self.is_shared and self.syncs_batchnorm else nullcontext():
            means = self.objective(batch)
        self.last_loss = means["loss"].detach()
        self._train_means.add(means, len(images_of(batch)))
        if not self.is_shared:
            return means["loss"]
        self.is_shared = False
        return means["loss"] * self._weight(batch_idx)

    def remember(self) -> None:
        """Keep what the batches of a step change beside its update."""
        self._before = [b.clone() for b in self.net.buffers()], self._train_means.state_dict()

    def recall(self) -> None:
        """Put back what `remember` kept, where the step is left out."""
        buffers, means = self._before
        for buffer, value in zip(self.net.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self._train_means.load_state_dict({**means, "ranks": [means] * ranks.size()})

    def _weight(self, batch: int) -> float:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        order: EpochBatchSampler = data.train_sampler  # type: ignore[assignment]  # gave the batch
        return weight(order.size_of(batch), ranks.rank(), ranks.size())

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means; kept by hand, because Lightning's do not survive a resume."""
        self.log_dict({f"train/{name}": mean for name, mean in self._train_means.take().items()})

    # -- evaluation -------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Show hard weights (float ones during the warm start)."""
        self._show_for_evaluation()

    def on_test_start(self) -> None:
        """As in validation."""
        self._show_for_evaluation()

    def on_validation_end(self) -> None:
        """Show the forward weights again."""
        self._shown.close()

    def on_test_end(self) -> None:
        """Show the forward weights again."""
        self._shown.close()

    def _show_for_evaluation(self) -> None:
        self._shown.close()
        ranks.copy_from_first(self.net.buffers())  # statistics of BatchNorm are of one share
        self._shown.enter_context(self.phases.judged_weights())
        ranks.copy_from_first(self.net.buffers())  # an average has statistics of its own
        batches = self.training_spec.bn_reestimate
        if batches and self.is_quantized:
            self._shown.enter_context(reestimated_batchnorm(self.net, self._images(batches)))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure on the validation part."""
        self.evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure on the test part."""
        self.evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log theta and, while it is inside (0, 1), the score of the relaxed weights."""
        is_training = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if self.quant_optimizer is None or not is_training:
            return
        self.log("quant/theta", self.phases.theta)
        if 0 < self.phases.theta < 1:
            self._shown.close()  # the forward weights are the relaxed ones
            self.log(f"val/{self.score}_relaxed", self._relaxed_score())

    def _relaxed_score(self) -> float:
        hits, count = [], 0
        loader: Any = self.trainer.val_dataloaders
        # the same images and the same arithmetic as val/<score> beside it
        with self.trainer.precision_plugin.forward_context(), ExitStack() as statistics:
            if self.training_spec.bn_reestimate:
                images = self._images(self.training_spec.bn_reestimate)
                statistics.enter_context(reestimated_batchnorm(self.net, images))
            for batch in islice(loader, int(self.trainer.num_val_batches[0])):
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                predicted = self.net(images_of(batch)).argmax(dim=1)
                hits.append((predicted == self.target(batch)).sum())
                count += len(predicted)
        correct = int(torch.stack(hits).sum()) if hits else 0  # waits for the device once
        found = ranks.total(torch.tensor([correct, count]))
        return int(found[0]) / max(1, int(found[1]))

    @property
    def is_selectable(self) -> bool:
        """Whether this epoch may be selected: all that is to be quantized is, or nothing is."""
        return not self.spec.has_quantizers or self.phases.is_hard

    # -- checkpoint -------------------------------------------------------------------------------

    def _fingerprint(self) -> str:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        return fingerprint(data.parts.train)

    def _content(self) -> str:
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data.content

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the phase and the epoch's running sums, and store projected weights once.

        The latent weights take the place of the forward weights, which follow from them; as the
        optimizer's part holds the same tensors, the file does not grow by them.
        """
        checkpoint["state_dict"] |= self.phases.latent_entries(self)
        checkpoint["qat"] = {
            "weights": "latent",  # earlier versions saved what the parameters showed
            "preparation": preparation_of(self.net),
            "is_quantized": self.is_quantized,
            # weights alone are saved by one process, and never trained on
            "train_means": (
                self._train_means.state_of_all()
                if "loops" in checkpoint
                else self._train_means.state_dict()
            ),
            "images": self._fingerprint(),
            "content": self._content(),
        }
        average = self.phases.average
        if average is not None and average.has_begun:
            if "loops" in checkpoint:  # a whole one goes on from both
                checkpoint["qat"]["ema"] = average.state_dict()
            else:
                checkpoint["state_dict"] |= average.entries(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the phase and the epoch's running sums; an evaluation gets hard weights.

        Raises:
            CheckpointError: the training images are others than the run began with, or a tensor
                is complex.
        """
        refuse_complex(checkpoint)
        is_over = is_at_end(checkpoint, self.trainer.max_epochs)
        check_preparation(self.net, checkpoint["qat"].get("preparation", 1))
        before, now = checkpoint["qat"].get("images"), self._fingerprint()
        if before != now and not is_over:
            raise CheckpointError(
                f"the run began with the training images ({before}), now there are ({now}): its "
                "order of images would be another; bring those back, or start a new run"
            )
        # earlier versions knew their number alone
        if checkpoint["qat"].get("content", self._content()) != self._content() and not is_over:
            raise CheckpointError(
                "the run began with other classes, or with training images of other names; bring "
                "those back, or start a new run"
            )
        # the latent weights of its optimizer are those of another run
        self.phases.let_go(is_quantized=checkpoint["qat"]["is_quantized"])
        self._train_means.load_state_dict(checkpoint["qat"]["train_means"])
        average = checkpoint["qat"].get("ema")
        if average is not None and self.phases.average is not None:
            self.phases.average.load_state_dict(average)
        is_latent = checkpoint["qat"].get("weights") == "latent"
        if is_latent and self.is_quantized and self.trainer.state.fn != TrainerFn.FITTING:
            # a fit makes them itself, from its optimizer's part
            values = average["values"] if average else {}
            state = checkpoint["state_dict"] | {f"net.{name}": v for name, v in values.items()}
            checkpoint["state_dict"] = state | self.phases.hard_entries(self, state)
            if self.phases.average is not None:
                self.phases.average.forget()
