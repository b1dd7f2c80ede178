"""LitDistiller: distillation from a teacher, with labels or without."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from qat.data.dataset import Batch, images_of
from qat.distill.loss import FeatureLoss
from qat.distill.tap import FeatureTap
from qat.distill.teacher import Answer, Teacher
from qat.errors import CheckpointError
from qat.functional.distillation import logit_kl, logit_mse
from qat.lit.classifier import LitClassifier, hit_rate
from qat.quantize.plan import Plan
from qat.spec.distill import DistillSpec
from qat.spec.quant import QuantSpec

_MONITORS = {"accuracy": "val/acc", "agreement": "val/agreement", "last": None}


class LitDistiller(LitClassifier):
    """A student on few levels that learns from a frozen teacher; see `LitQuantized`.

        loss = w_logits L_logits + w_features sum_layers L_features [+ gamma cross-entropy]

    Without labels, batches of training and validation are images alone, `target` is the class
    that the teacher says, and the score is the agreement with it. The test part has labels.

    The teacher is no part of the module: its weights are neither trained nor saved. Its hash and
    origin are, and a run is resumed with the same teacher only.

    Args:
        net: prepared network, the student.
        spec: the options it was prepared with, or its plan.
        teacher: frozen, with one tapped layer for each of `layers`.
        distill: what to learn.
        layers: modules of the student whose outputs are compared with the teacher's.
        feature_loss: between those, None for none; its adapters learn with the student.
        classes: number of classes.
        options: of `LitClassifier`.

    Attributes:
        layers: as given; empty without a feature loss.

    Logs (fractions 0..1) val/agreement, test/agreement and test/acc_teacher beside what
    `LitClassifier` logs (without labels, val/loss is the loss between the logits and there is no
    val/acc), and each unweighted term as train/loss_<logits | features | labels>.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: QuantSpec | Plan,
        *,
        teacher: Teacher,
        distill: DistillSpec,
        layers: Iterable[str] = (),
        feature_loss: FeatureLoss | None = None,
        classes: int,
        **options: Any,
    ) -> None:
        super().__init__(net, spec, classes=classes, **options)
        self.distill = distill
        self.teacher = teacher
        self.feature_loss = feature_loss
        self.score = "acc" if distill.labels else "agreement"
        self.monitor = _MONITORS[distill.selection]
        self.layers = tuple(layers) if feature_loss is not None else ()
        self._tap = FeatureTap(net, self.layers)
        self._taps = ExitStack()
        self._agreement = MulticlassAccuracy(classes, average="micro")
        self._teacher_accuracy = MulticlassAccuracy(classes, average="micro")
        self._logit_loss = MeanMetric()

    def learned_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The student's and the adapters'."""
        extra = self.feature_loss.named_parameters("feature_loss") if self.feature_loss else ()
        return chain(super().learned_parameters(), extra)

    # -- training ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Tap the student before it is compiled."""
        self._taps.enter_context(self._tap)
        super().on_fit_start()

    def teardown(self, stage: str) -> None:
        """Leave the student without hooks."""
        self._taps.close()
        super().teardown(stage)

    def objective(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, their weighted sum, and the score."""
        answer = self.teacher.ask(images_of(batch))
        logits = self.net(images_of(batch))
        terms = self._terms(logits, answer, batch)
        target = batch[1] if self.distill.labels else answer.logits.argmax(dim=1)
        return {
            "loss": torch.stack([weight * term for weight, term in terms.values()]).sum(),
            self.score: hit_rate(logits, target),
            **{f"loss_{name}": term for name, (_, term) in terms.items()},
        }

    def _terms(
        self, logits: Tensor, answer: Answer, batch: Batch
    ) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, term) of what the loss adds up."""
        distill = self.distill
        terms: dict[str, tuple[float, Tensor]] = {}
        if distill.logits.loss != "none":
            terms["logits"] = distill.logits.weight, self._between(logits, answer.logits)
        if self.feature_loss is not None:
            step = self.quant_optimizer.completed_steps if self.quant_optimizer else 0
            found = self.feature_loss(self._tap.take(), answer.maps, step=step)
            terms["features"] = distill.features.weight, found
        if distill.labels:
            terms["labels"] = distill.label_weight, self.criterion(logits, batch[1])
        return terms

    def _between(self, logits: Tensor, teacher: Tensor) -> Tensor:
        if self.distill.logits.loss == "kl":
            return logit_kl(logits, teacher, temperature=self.distill.logits.temperature)
        return logit_mse(logits, teacher)

    # -- evaluation -------------------------------------------------------------------------------

    def target(self, batch: Batch) -> Tensor:
        """The labels, or without them the classes that the teacher says."""
        if self.distill.labels:
            return super().target(batch)
        return self.teacher.ask(images_of(batch)).logits.argmax(dim=1)

    def evaluate(self, batch: Batch, part: str) -> None:
        """Agreement with the teacher; against labels where they may be seen."""
        logits, said = self.net(images_of(batch)), self.teacher.ask(images_of(batch)).logits
        self._agreement(logits, said.argmax(dim=1))
        self.log(f"{part}/agreement", self._agreement, on_step=False, on_epoch=True, prog_bar=True)
        if part == "test" or self.distill.labels:
            self.log_labelled(logits, batch[1], part)
        else:
            self._logit_loss(self._between(logits, said), len(logits))
            self.log(f"{part}/loss", self._logit_loss, on_step=False, on_epoch=True)
        if part == "test":
            self._teacher_accuracy(said, batch[1])
            self.log("test/acc_teacher", self._teacher_accuracy, on_step=False, on_epoch=True)

    # -- checkpoint -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which teacher it is."""
        super().on_save_checkpoint(checkpoint)
        teacher = {"sha256": self.teacher.sha256, "origin": self.teacher.origin}
        checkpoint["qat"]["teacher"] = teacher

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another teacher.

        Raises:
            CheckpointError: the teacher's weights are not those that the run began with.
        """
        before = checkpoint["qat"].get("teacher")
        if before is None:
            raise CheckpointError(
                "the run began without a teacher and is not resumed with one; start a new run with "
                "init_from=RUN and distill=..."
            )
        if before["sha256"] != self.teacher.sha256:
            raise CheckpointError(
                f"the run began with the teacher {before['origin']} of sha256 "
                f"{before['sha256'][:12]}, now {self.teacher.origin} has "
                f"{self.teacher.sha256[:12]}; bring that one back, or start a new run"
            )
        super().on_load_checkpoint(checkpoint)
