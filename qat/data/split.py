"""Stratified splits, fixed: the same on every machine, for every seed of a run."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
from torch import Tensor

from qat.data.dataset import LabelledImages, RawImages
from qat.data.sampler import derived_seed
from qat.errors import DataError


@dataclass(frozen=True, slots=True)
class Parts:
    """The three disjoint parts of a data set, raw; labels are for the test, and perhaps for all."""

    train: RawImages
    validation: RawImages
    test: LabelledImages


def check_parts(parts: Parts, name: str) -> None:
    """Raise DataError if a part is empty: training would find out at its end.

    Args:
        parts: of a data set.
        name: of it.
    """
    sizes = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    counts = {title: len(images) for title, images in sizes.items()}
    empty = next((title for title, count in counts.items() if count == 0), None)
    if empty is not None:
        raise DataError(
            f"data={name} has {sum(counts.values())} images, none of them in its {empty} part "
            f"({'/'.join(map(str, counts.values()))} for training, validation and test); add "
            "images; with data.split=path a class of 3 has one in each part"
        )


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


def path_order(labels: Tensor, names: Sequence[bytes], shares: Sequence[float]) -> list[np.ndarray]:
    """Indices of stratified parts, one for each share, and the rest, by a hash of the names.

    The n members of each class are ranked by the hash. Cut k = 1..K of the class lies at

        c_k(n) = max(floor(s_k n + 1/2), min(k, n - K - 1 + k), 0)

    with s_k the sum of the first k shares, so a class of more than K members has one in each part.
    As c_k(n) is c_k(n - 1) or one more, and depends on nothing but the class, one member less
    moves at most one other across each cut, and none of another class.

    Args:
        labels: (N,), int64, >= 0.
        names: of the images, all different; the same on every machine.
        shares: fractions of all images, >= 0, with a sum below 1.

    Returns:
        Indices of each part, int64; as in `stratified_order` every prefix of a part holds the
        classes in their proportions.
    """
    keys = np.array([_name_key(name) for name in names], dtype=np.uint64)
    classes = labels.numpy()
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        ranked = members[np.argsort(keys[members], kind="stable")]
        cuts = _cuts(len(ranked), shares)
        for part, chosen in zip(parts, np.split(ranked, cuts), strict=True):
            part.append(chosen)
    return [_mixed(part, keys) for part in parts]


def _name_key(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _cuts(count: int, shares: Sequence[float]) -> list[int]:
    """Where a class of `count` ranked members is cut."""
    last = len(shares)
    return [
        max(math.floor(share * count + 0.5), min(k, count - 1 - last + k), 0)
        for k, share in enumerate(accumulate(shares), start=1)
    ]


def _mixed(classes: Sequence[np.ndarray], keys: np.ndarray) -> np.ndarray:
    """Ranked members of several classes as one order: number r of n at (r + 1/2) / n."""
    members = np.concatenate(classes)
    places = [(np.arange(len(ranked)) + 0.5) / max(1, len(ranked)) for ranked in classes]
    return members[np.lexsort((keys[members], np.concatenate(places)))]


def carve_by_path(images: Images, names: Sequence[bytes], shares: Sequence[float]) -> list[Images]:
    """Cut `images` into stratified parts by their names; see `path_order`."""
    return [images.select(part) for part in path_order(images.labels, names, shares)]


def carve(images: Images, shares: Sequence[float]) -> list[Images]:
    """Cut `images` into stratified parts by their numbers, one for each share, and the rest.

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
