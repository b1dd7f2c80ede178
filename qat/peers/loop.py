"""Training loop of a peer: the two phases of `train.py`, with the peer in the second one."""

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from qat.errors import NonFiniteError
from qat.lit.classifier import hit_rate
from qat.lit.epoch_means import EpochMeans
from qat.lit.learning_rate import phase_factor
from qat.lit.quantized import OptimizerFactory
from qat.lit.resume.csv_logger import RunCsvLogger
from qat.optim.groups import parameter_groups
from qat.peers.peer import Peer
from qat.spec.run import RunSpec
from qat.train.build import Built


@dataclass(slots=True)
class Kept:
    """A state of the network to be tested at the end.

    Attributes:
        place: epoch (from 1) and optimizer steps done.
        net: a copy as it was judged. Not a state dict: Brevitas counts outside of it.
        val: validation metrics.
    """

    place: dict[str, int]
    net: nn.Module
    val: dict[str, float]


@dataclass(slots=True)
class Fitted:
    """What a fit leaves.

    Attributes:
        twin: a copy of the network as it was before training.
        states: last and, where there was one, selected.
        warm: the float network at the switch, None without a warm start.
        steps: optimizer steps, of both phases.
        quantized_steps: those of the second one.
        seconds: wall time.
    """

    twin: nn.Module
    states: dict[str, Kept] = field(default_factory=dict)
    warm: Kept | None = None
    steps: int = 0
    quantized_steps: int = 0
    seconds: float = 0.0


class PeerLoop:
    """Trains the network of `built` in place.

    The same batches, loss, parameter groups and learning rates as `LitClassifier`: each phase runs
    the whole schedule, and the second one starts with a fresh optimizer. Selected is the first
    epoch with the highest validation accuracy among those that end on hard weights.

    Args:
        built: data and float network of `qat.train.build.build`.
        spec: the run, checked.
        optimizer: partial of a torch optimizer.
        peer: quantizes from the second phase on.
        logger: writes metrics.csv.
    """

    def __init__(
        self,
        built: Built,
        spec: RunSpec,
        *,
        optimizer: OptimizerFactory,
        peer: Peer,
        logger: RunCsvLogger,
    ) -> None:
        self.net, self.data, self._lit = built.net, built.data, built.lit
        self._spec, self._make_base, self._peer, self._logger = spec, optimizer, peer, logger
        per_epoch = self.data.batches_per_epoch
        self._epochs: int = spec.trainer["max_epochs"]
        total, self._warm_steps = (n * per_epoch for n in (self._epochs, spec.warm_start.epochs))
        self._factor = phase_factor(spec.scheduler, min(total, self._warm_steps), total)
        self._total, self._step, self._is_quantized = total, 0, False
        self._optimizer = self._fresh()
        self._means = EpochMeans()

    def fit(self) -> Fitted:
        """All epochs.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        begin, fitted = time.monotonic(), Fitted(copy.deepcopy(self.net))
        loader = self.data.train_dataloader()
        for epoch in range(self._epochs):
            if epoch == self._spec.warm_start.epochs:
                self._switch()
            self.net.train()
            for image, label in loader:
                self._train_step(image, label)
            self._finish_epoch(epoch, fitted)
        fitted.steps, fitted.quantized_steps = self._step, max(0, self._step - self._warm_steps)
        fitted.seconds = time.monotonic() - begin
        return fitted

    def _hard(self) -> AbstractContextManager[None]:
        """A context in which the network computes with what it is judged on."""
        judged = self._peer.judged(self.net, self._optimizer)
        return judged if self._is_quantized else nullcontext()

    def _switch(self) -> None:
        self._peer.convert(self.net, self._spec.training.start_batches)
        self._optimizer = self._peer.wrap(self._fresh(), self._total - self._warm_steps)
        self._is_quantized = True

    def _fresh(self) -> Optimizer:
        keywords = self._make_base.keywords
        groups = parameter_groups(
            self.net.named_parameters(),
            lr=keywords["lr"],
            weight_decay=keywords.get("weight_decay"),
            step_rate=self._spec.quant.activation.step_rate,
            decay=self._spec.training.decay,
        )
        return self._make_base(groups)

    def _train_step(self, image: Tensor, label: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._make_base.keywords["lr"] * self._factor(self._step)
        logits = self.net(image)
        loss = self._lit.criterion(logits, label)
        if not bool(loss.isfinite()):
            raise NonFiniteError(
                f"step {self._step + 1}: the loss is {loss.item()}; the update was not made, lower "
                "optimizer.lr and start again"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # no closure: one would be run at other weights by PARQ
        self._optimizer.step()
        self._step += 1
        self._means.add({"loss": loss, "acc": hit_rate(logits, label)}, len(label))

    def _finish_epoch(self, epoch: int, fitted: Fitted) -> None:
        theta = self._peer.theta(self._optimizer) if self._is_quantized else 0.0
        place = {"epoch": epoch + 1, "global_step": self._step}
        with self._hard():
            val = evaluated(self.net, self.data.val_dataloader(), self.data.num_classes)
            kept = Kept(place, copy.deepcopy(self.net), val)
        row = {"epoch": epoch, **{f"val/{k}": v for k, v in val.items()}, "quant/theta": theta}
        self._logger.log_metrics(row, step=self._step - 1)
        means = {f"train/{name}": mean for name, mean in self._means.take().items()}
        self._logger.log_metrics({"epoch": epoch, **means}, step=self._step - 1)
        phase = "quantized" if self._is_quantized and self._peer.weight_bits < 32 else "float"
        shown = f"val/acc {val['acc']:.4f}  val/loss {val['loss']:.4f}"
        print(f"epoch {epoch + 1}/{self._epochs}  {phase:9}  {shown}", flush=True)
        fitted.states["last"] = kept
        if epoch + 1 == self._spec.warm_start.epochs:
            fitted.warm = kept
        if self._peer.weight_bits == 32 or (self._is_quantized and theta == 1.0):
            best = fitted.states.get("selected")
            if best is None or val["acc"] > best.val["acc"]:
                fitted.states["selected"] = kept


def evaluated(
    net: nn.Module, loader: Any, classes: int, *, confusion: Metric | None = None
) -> dict[str, float]:
    """Accuracy and plain cross-entropy, with the arithmetic of `LitClassifier`.

    Args:
        net: network.
        loader: batches of (image, label).
        classes: number of classes.
        confusion: further metric of logits and labels, updated on the way.
    """
    accuracy, mean = MulticlassAccuracy(classes, average="micro"), MeanMetric()
    net.eval()
    with torch.no_grad():
        for image, label in loader:
            logits = net(image)
            accuracy.update(logits, label)
            mean.update(F.cross_entropy(logits, label), len(label))
            if confusion is not None:
                confusion.update(logits, label)
    return {"acc": float(accuracy.compute()), "loss": float(mean.compute())}
