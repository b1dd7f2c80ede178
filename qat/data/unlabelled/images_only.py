"""A task whose training and validation images come without labels."""

from dataclasses import dataclass
from typing import Any, cast

from qat.data.dataset import LabelledImages, RawImages, Transform
from qat.data.module import ImageData
from qat.data.split import Parts
from qat.data.unlabelled.form import Form
from qat.data.unlabelled.mixed import Mixed, mixed
from qat.errors import DataError, SpecError
from qat.spec.header import Crop
from qat.spec.unlabelled import UnlabelledSpec, check_unlabelled


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


class ImagesOnly(ImageData):
    """Images for a task, without labels: batches of training and validation are (N, C, H, W).

    Shapes, normalisation and transforms are the task's. Training images come from the sources of
    `unlabelled`, or are the task's own; validation images are the task's own; the test part keeps
    its labels. No label is read; that the task's fixed parts hold its classes in proportion is a
    property of the data set. Order and augmentation are functions of (seed, epoch, index), as
    everywhere.

    Args:
        task: what the network is for.
        unlabelled: where training images come from; None is the task's training part.

    Raises:
        SpecError: data.class_weights needs labels.
    """

    def __init__(self, task: ImageData, unlabelled: UnlabelledSpec | None = None) -> None:
        super().__init__(task.options, seed=task.seed)
        self._task, self._unlabelled = task, unlabelled
        if task.options.class_weights != "none":
            raise SpecError(
                f"data.class_weights={task.options.class_weights} counts labels; use none"
            )

    @property
    def channels(self) -> int:  # type: ignore[override]
        """C of an image, the task's."""
        return self._task.channels

    @property
    def native_size(self) -> int:  # type: ignore[override]
        """Of the task, in pixels."""
        return self._task.native_size

    @property
    def crop(self) -> Crop:  # type: ignore[override]
        """Of the task's images."""
        return self._task.crop

    @property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Of the task's channels."""
        return self._task.mean

    @property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Of the task's channels."""
        return self._task.std

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task."""
        return self._task.classes

    @property
    def num_classes(self) -> int:
        """Of the task."""
        return self._task.num_classes

    @property
    def skipped(self) -> tuple[str, ...]:
        """Paths of the unreadable files that were left out."""
        train = self.parts.train
        return train.skipped if isinstance(train, Mixed) else ()

    def check(self) -> None:
        """As the task's, and of the sources.

        Raises:
            SpecError: an option of a source is missing or unknown.
            DataError: images are missing.
        """
        self._task.check()
        if self._unlabelled is not None:
            check_unlabelled(self._unlabelled)

    def download(self) -> None:
        """As the task's."""
        self._task.download()

    def training_transform(self) -> Transform:
        """As the task's."""
        return self._task.training_transform()

    def evaluation_transform(self) -> Transform:
        """As the task's."""
        return self._task.evaluation_transform()

    def load(self) -> Parts:
        """Read the task's parts and list the other sources.

        Raises:
            SpecError: an option of a source is missing or unknown.
            DataError: images are missing or unreadable.
        """
        parts = self._task.parts
        train: RawImages = _without_labels(parts.train)
        if self._unlabelled is not None:
            size = self.native_size if self._task.has_fixed_size else None
            train = mixed(self._unlabelled, train, Form(self.channels, size), side=self.image_size)
        if len(train) < 2:
            raise DataError(
                f"unlabelled={','.join(self._unlabelled.sources) if self._unlabelled else 'null'} "
                f"gives {len(train)} image; training needs 2 at least"
            )
        return Parts(train, _without_labels(parts.validation), parts.test)


def _without_labels(images: RawImages) -> LabelsRemoved:
    return LabelsRemoved(cast(LabelledImages, images))  # a task's images have labels
