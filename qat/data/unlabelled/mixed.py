"""Unlabelled images: a task's own without its labels, and other sources mixed in."""

import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

from qat.data.dataset import LabelledImages, RawImages, fingerprint
from qat.data.sampler import derived_seed
from qat.data.split import Parts
from qat.data.unlabelled.folder import folder_images
from qat.data.unlabelled.form import Form
from qat.data.unlabelled.photographs import photograph_patches
from qat.data.unlabelled.torchvision_set import torchvision_images
from qat.errors import DataError
from qat.spec.unlabelled import UnlabelledSpec


@dataclass(frozen=True, slots=True)
class LabelsRemoved:
    """Labelled images without their labels, which are never asked for.

    Attributes:
        images: labelled ones.
    """

    images: LabelledImages

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images.image(index)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Several sources, one behind the other; the order of an epoch mixes them.

    Attributes:
        sources: none of them empty.
        skipped: unreadable files that were left out.
    """

    sources: tuple[RawImages, ...]
    skipped: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of all sources."""
        return " ".join(fingerprint(source) for source in self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Any:
        ends = list(accumulate(map(len, self.sources)))
        place = bisect.bisect_right(ends, index)
        return self.sources[place][index - (ends[place - 1] if place else 0)]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of the images of a source."""

    images: RawImages
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.images[self.indices[index]]


def without_labels(task: Parts, spec: UnlabelledSpec | None, form: Form, *, side: int) -> Parts:
    """Parts whose training and validation images come without labels; the test keeps its own.

    Args:
        task: the labelled parts; none of their labels is read.
        spec: where training images come from; None is the task's training part.
        form: of the task's raw images.
        side: of the images that the network sees, in pixels.

    Raises:
        SpecError: an option of a source is missing or unknown.
        DataError: images are missing or unreadable, or fewer than two.
    """
    train: RawImages = LabelsRemoved(cast(LabelledImages, task.train))
    if spec is not None:
        train = mixed(spec, train, form, side=side)
    if len(train) < 2:
        raise DataError(
            f"unlabelled={','.join(spec.sources) if spec else 'null'} gives {len(train)} image; "
            "training needs 2 at least"
        )
    return Parts(train, LabelsRemoved(cast(LabelledImages, task.validation)), task.test)


def mixed(spec: UnlabelledSpec, task: RawImages, form: Form, *, side: int) -> Mixed:
    """All sources of a config, in the order of `spec.sources`.

    Args:
        spec: the sources.
        task: the training images of the task, labels removed.
        form: of the task's raw images.
        side: of the images that the network sees, in pixels.

    Raises:
        SpecError: an option is missing or unknown.
        DataError: images are missing or unreadable.
    """
    sources: list[RawImages] = []
    skipped: tuple[str, ...] = ()
    if spec.task is not None:
        sources.append(share_of(task, spec.task.share))
    if spec.folder is not None:
        files = folder_images(spec.folder, form)
        sources.append(files)
        skipped = files.skipped
    if spec.photographs is not None:
        sources.append(photograph_patches(spec.photographs, form, smallest=form.size or side))
    if spec.torchvision is not None:
        sources.append(torchvision_images(spec.torchvision, form))
    return Mixed(tuple(sources), skipped)


def share_of(images: RawImages, share: float) -> RawImages:
    """A fixed random part of the images, at least one, chosen by a hash of their index.

    Not the first ones: the order of a part is stratified, so these would be chosen by label.

    Args:
        images: of the task.
        share: fraction of them, (0, 1].
    """
    if share == 1:
        return images
    order = sorted(range(len(images)), key=derived_seed)
    return Chosen(images, tuple(order[: max(1, round(share * len(order)))]))
