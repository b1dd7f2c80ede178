"""Stratified splits, fixed: the same on every machine, for every seed of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from qat.data.dataset import LabelledImages, RawImages
from qat.data.sampler import derived_seed


@dataclass(frozen=True, slots=True)
class Parts:
    """The three disjoint parts of a data set, raw; labels are for the test, and perhaps for all."""

    train: RawImages
    validation: RawImages
    test: LabelledImages


Images = TypeVar("Images", bound=LabelledImages)


def stratified_order(labels: Tensor) -> np.ndarray:
    """Indices in an order whose every prefix holds the classes in their proportions.

    The members of a class are shuffled by a hash of their index (fixed for good, unlike the
    output of a random generator across library versions). Number r = 0, 1, ... of n members gets
    the place (r + 1/2) / n in [0, 1], and all samples are sorted by place. A prefix holding the
    fraction f of all samples then holds f n members of each class, up to one or two.

    Args:
        labels: (N,), int64, >= 0.

    Returns:
        A permutation of 0..N-1, int64.
    """
    classes = labels.numpy()
    keys = np.array([derived_seed(index) for index in range(len(classes))], dtype=np.uint64)
    grouped = np.lexsort((keys, classes))
    sizes = np.bincount(classes)
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(classes), dtype=np.int64)
    rank[grouped] = np.arange(len(classes)) - first[classes[grouped]]
    return np.lexsort((keys, (rank + 0.5) / sizes[classes]))


def carve(images: Images, shares: Sequence[float]) -> list[Images]:
    """Cut `images` into stratified parts, one for each share, and the rest.

    A class of a single image goes to the rest if the shares add up to less than 1/2, so give the
    training part the rest. Each part is in stratified order, so its first images are of many
    classes.

    Args:
        images: raw images.
        shares: fractions of all images, >= 0, with a sum below 1.

    Returns:
        `len(shares) + 1` disjoint parts; part i has round(share_i N) images.
    """
    order = stratified_order(images.labels)
    cuts = np.cumsum([round(share * len(order)) for share in shares])
    return [images.select(part) for part in np.split(order, cuts)]
