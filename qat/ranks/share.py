"""Share of a batch: rank r of n takes every n-th of its images, from the r-th on.

Order and batches are those of one process, whatever n is: only who works on an image differs.
"""

from collections.abc import Sequence
from typing import TypeVar

from qat.errors import SpecError

T = TypeVar("T")

_SMALLEST = 2  # images of a share: BatchNorm in training refuses a single value per channel


def share(batch: Sequence[T], rank: int, size: int) -> list[T]:
    """The images of a batch that a rank works on.

    >>> share([10, 11, 12, 13, 14], 1, 2)
    [11, 13]
    """
    return list(batch[rank::size])


def weight(batch: int, rank: int, size: int) -> float:
    """What the mean over a share counts for, so that the mean over ranks is that over the batch.

        n |share| / |batch|

    Args:
        batch: images in the whole batch.
        rank: whose share it is.
        size: n.

    >>> weight(8, 1, 2), weight(5, 0, 2), weight(5, 1, 2)
    (1.0, 1.2, 0.8)
    """
    return size * len(range(rank, batch, size)) / batch


def check_shares(images: int, batch_size: int, size: int, *, keeps_last: bool = True) -> None:
    """Refuse batches that are too small to be divided.

    Args:
        images: of the training part.
        batch_size: of all ranks together.
        size: number of ranks.
        keeps_last: whether an incomplete last batch is trained on.

    Raises:
        SpecError: some rank's share of a batch would be a single image, or none.
    """
    least = _SMALLEST * size
    if size == 1:
        return
    if images < least:
        raise SpecError(
            f"the training part has {images} images, and each of {size} processes needs "
            f"{_SMALLEST} of a batch; use at most {max(1, images // _SMALLEST)} processes"
        )
    if batch_size < least:
        raise SpecError(
            f"data.batch_size={batch_size} is of all {size} processes together, and each needs "
            f"{_SMALLEST} images of a batch; use data.batch_size={_near(images, least, least)}"
        )
    rest = images % batch_size
    if keeps_last and 0 < rest < least:
        raise SpecError(
            f"the last batch of an epoch has {rest} images ({images} in batches of {batch_size}), "
            f"too few for {size} processes; use data.batch_size="
            f"{_near(images, batch_size, least)}, or {rest // _SMALLEST or 1} processes"
        )


def _near(images: int, batch_size: int, least: int) -> int:
    """The batch size next to another that leaves no last batch, or one of `least` images."""
    steps = sorted(range(least, images + 1), key=lambda other: abs(other - batch_size))
    return next(other for other in steps if not 0 < images % other < least)
