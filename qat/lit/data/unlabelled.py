"""Sources of images without labels, and their mixture."""

import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from qat.lit.data.dataset import RawImages
from qat.lit.data.form import Form
from qat.lit.data.photographs import photograph_patches
from qat.lit.data.unlabelled_folder import folder_images
from qat.lit.data.unlabelled_torchvision import torchvision_images
from qat.unlabelled_spec import (
    FolderImages,
    Photographs,
    TaskImages,
    TorchvisionImages,
    UnlabelledSpec,
)


def mixed(spec: UnlabelledSpec, task: RawImages, form: Form) -> RawImages:
    """All sources of a config, in the order of `spec.sources`.

    Args:
        spec: the sources.
        task: the training images of the task, labels removed.
        form: of the task's raw images.

    Raises:
        SpecError: an option is missing or unknown.
        DataError: images are missing or unreadable.
    """
    found = [_source(options, task, form) for options in spec.sources.values()]
    return found[0] if len(found) == 1 else Mixed(tuple(found))


def _source(options: Any, task: RawImages, form: Form) -> RawImages:
    match options:
        case TaskImages():
            return _Part(task, max(1, round(options.share * len(task))))
        case FolderImages():
            return folder_images(options, form)
        case Photographs():
            return photograph_patches(options, form)
        case TorchvisionImages():
            return torchvision_images(options, form)
        case _:
            raise AssertionError(options)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Several sources behind one another.

    Attributes:
        sources: none of them empty.
    """

    sources: tuple[RawImages, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Any:
        ends = list(accumulate(map(len, self.sources)))
        place = bisect.bisect_right(ends, index)
        return self.sources[place][index - (ends[place - 1] if place else 0)]


@dataclass(frozen=True, slots=True)
class _Part:
    """The first images of others."""

    images: RawImages
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.images[index]
