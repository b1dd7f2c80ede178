"""Mixing: Mixup and CutMix of a training image with another, drawn by the image's own seed."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from qat.data.dataset import Sample
from qat.data.sampler import members


class Mixing:
    """Mixup or CutMix of two images (C, H, W) and of their labels, by torchvision.transforms.v2.

        Mixup   x = lam a + (1 - lam) b                     lam ~ Beta(alpha, alpha)
        CutMix  x = b inside of a rectangle, a elsewhere    lam = 1 - its pixels / (H W)
        y = lam e_a + (1 - lam) e_b

    with e the unit vectors of the labels. CutMix's rectangle has sides of sqrt(1 - l) H and
    sqrt(1 - l) W, l ~ Beta(alpha, alpha), and any centre; what of it lies outside is cut off. With
    both, each has probability 1/2.

    Args:
        classes: K; images without labels are mixed alone.
        mixup: alpha, 0 for none.
        cutmix: alpha, 0 for none.
        balance: labels (N,), int64, if the image that is mixed in is to be of every class equally
            often, as in `balanced_order`; None draws every image equally often.

    Source: arXiv:1710.09412 (Mixup), arXiv:1905.04899 (CutMix). Unlike there, each image has its
    own lam and a partner from all of the training part, so that no sample depends on its batch.
    """

    def __init__(
        self, *, classes: int, mixup: float, cutmix: float, balance: Tensor | None = None
    ) -> None:
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        own = [kind(alpha=float(alpha), num_classes=classes) for kind, alpha in kinds if alpha]
        self._mix = own[0] if len(own) == 1 else v2.RandomChoice(own)
        self._classes = None if balance is None else members(balance)

    def partner(self, index: int, count: int) -> int:
        """Which of `count` images is mixed into the one at `index`: another, if there is one.

        With `balance` it may be the same one, as a class may have no other.
        """
        if self._classes is None:
            return (index + 1 + _drawn(max(1, count - 1))) % count
        own = self._classes[_drawn(len(self._classes))]
        return int(own[_drawn(len(own))])

    def __call__(self, sample: Sample, other: Sample) -> Sample:
        """The sample with the other one mixed into it; its label is a float32 vector (K,)."""
        (a, i), (b, j) = (s if isinstance(s, tuple) else (s, 0) for s in (sample, other))
        images, labels = self._mix(torch.stack([a, b]), torch.tensor([i, j]))
        return (images[0], labels[0]) if isinstance(sample, tuple) else images[0]


def _drawn(count: int) -> int:
    return int(torch.randint(count, ()))
