"""LitClassifier: supervised learning from labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from qat.data.dataset import Batch
from qat.lit.quantized import LitQuantized
from qat.quantize.plan import Plan
from qat.ranks import group as ranks
from qat.spec.quant import QuantSpec

MOST_CLASSES = 100  # of a confusion matrix that is worth keeping


class LitClassifier(LitQuantized):
    """Image classification on few levels, by cross-entropy; see `LitQuantized`.

    Args:
        net: prepared network.
        spec: the options it was prepared with, or its plan.
        classes: number of classes.
        class_weights: loss weight per class (K,), or None.
        options: of `LitQuantized`: optimizer, scheduler, training and more.

    Logs (fractions 0..1) val/acc, val/loss, test/acc, test/loss, train/loss and train/acc.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: QuantSpec | Plan,
        *,
        classes: int,
        class_weights: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(net, spec, **options)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._accuracy = MulticlassAccuracy(classes, average="micro")
        self._loss = MeanMetric()
        self._confusion = MulticlassConfusionMatrix(classes) if classes <= MOST_CLASSES else None

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts of the last test, rows true and columns predicted; None of very many classes."""
        return None if self._confusion is None else self._confusion.compute().tolist()

    def objective(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of a batch (class weights and label smoothing applied), and accuracy."""
        image, label = batch
        logits = self.net(image)
        return {"loss": self.criterion(logits, label), "acc": hit_rate(logits, label)}

    def target(self, batch: Batch) -> Tensor:
        """The labels."""
        return batch[1]

    def criterion(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits (N, K) and labels, as in training.

            sum_nk w_k q_nk (-log p_nk) / sum_nk w_k y_nk,    q = (1 - s) y + s / K

        with the class weights w (1 without), softmax p, smoothing s, and labels y: the unit vectors
        of classes (N,), or of mixed images themselves, (N, K).
        """
        weights: Tensor | None = self.class_weights  # type: ignore[assignment]
        smoothing = self.training_spec.label_smoothing
        loss = F.cross_entropy(logits, label, weight=weights, label_smoothing=smoothing)
        if weights is None:
            return loss
        total = weight_in(label, weights)
        if label.ndim == 2:  # where torch takes the mean over images, not over their weights
            loss = loss * len(label) / total
        if not self.is_shared:
            return loss
        # a mean over weights, not over images: shares count by the weights that are in them
        own = torch.stack([total.double().cpu(), torch.tensor(1.0 * len(label))])
        share = own / ranks.total(own)
        return loss * float(share[0] / share[1])

    def on_test_start(self) -> None:
        """Begin a confusion matrix."""
        super().on_test_start()
        if self._confusion is not None:
            self._confusion.reset()

    def evaluate(self, batch: Batch, part: str) -> None:
        """Accuracy and plain cross-entropy of a batch."""
        image, label = batch
        self.log_labelled(self.net(image), label, part)

    def log_labelled(self, logits: Tensor, label: Tensor, part: str) -> None:
        """Log accuracy and plain cross-entropy of logits (N, K) and labels (N,).

        In the test the confusion matrix is collected on the way.
        """
        if part == "test" and self._confusion is not None:
            self._confusion.update(logits, label)
        self._accuracy(logits, label)
        self._loss(F.cross_entropy(logits, label), len(label))
        self.log(f"{part}/acc", self._accuracy, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{part}/loss", self._loss, on_step=False, on_epoch=True)


def weight_in(label: Tensor, weights: Tensor) -> Tensor:
    """Sum of the class weights (K,) in labels: classes (N,) or their shares in images (N, K).

    >>> weight_in(torch.tensor([1, 0]), torch.tensor([1.0, 3.0]))
    tensor(4.)
    >>> weight_in(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1.0, 3.0]))
    tensor(3.)
    """
    return (weights[label] if label.ndim == 1 else label * weights).sum()


@torch.no_grad()
def hit_rate(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the rows of `logits` (N, K) whose largest entry is the class of the target, float64.

    Args:
        logits: (N, K).
        target: classes (N,); or shares of classes (N, K), of which the largest counts.
    """
    wanted = target if target.ndim == 1 else target.argmax(dim=1)
    return (logits.argmax(dim=1) == wanted).double().mean()
