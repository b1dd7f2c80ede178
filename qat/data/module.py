"""LightningDataModule: the base class of all data sets."""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qat.data.dataset import (
    Batch,
    LabelledImages,
    PlainDataset,
    RawImages,
    Sample,
    SeededDataset,
    Transform,
    collated,
)
from qat.data.loader import image_loader, in_channels_last, training_position
from qat.data.mixing import Mixing
from qat.data.record import content_of, held, record_of
from qat.data.sampler import EpochBatchSampler, FixedBatchSampler, Position
from qat.data.split import Parts, check_parts
from qat.data.transforms import augmented
from qat.data.unlabelled.form import Form
from qat.data.unlabelled.mixed import without_labels
from qat.errors import DataError, SpecError
from qat.functional.runtime import runtime
from qat.ranks import group as ranks
from qat.spec.data import DataSpec
from qat.spec.data_files import check_data
from qat.spec.header import Crop, Preprocessing
from qat.spec.unlabelled import UnlabelledSpec, check_unlabelled
from qat.storage.data_record import DataRecord

_SMALLEST_BATCH = 2  # BatchNorm in training refuses a single value per channel


class ImageData(L.LightningDataModule):
    """LightningDataModule of images in three fixed parts; a family sets attributes and `load`.

    Batches are (image, label): (N, C, H, W) float32, normalised, and (N,) int64; where training
    images are mixed, their labels are (N, K) float32, weights of the classes, of sum 1. With
    labels=False those of training and validation are the image alone, and no label of theirs is
    read; that fixed parts hold the classes in proportion is a property of the data set. The test
    part keeps its labels.

    Args:
        options: the config group `data`.
        seed: of the run; moves the order and the augmentation, never the split.
        labels: whether training and validation images come with their labels.
        unlabelled: with labels=False, where training images come from; None is the training part.
        before: of a run that goes on, its record: the files of its parts stay in them.

    Raises:
        SpecError: data.class_weights or data.sampling needs labels, or `unlabelled` is given with
            labels.

    Attributes:
        channels: C of an image.
        native_size: height and width in pixels unless data.image_size says otherwise.
        has_fixed_size: whether raw images have that size; false where a transform cuts it out.
        crop: whole images are stretched to the size, or the middle is cut out (centre).
        mean: of each channel, of pixels in 0..1.
        std: of each channel, of pixels in 0..1.
        train_sampler: of the last `train_dataloader`, None before.
    """

    channels: ClassVar[int]
    native_size: ClassVar[int]
    has_fixed_size: ClassVar[bool] = True
    crop: ClassVar[Crop] = "whole"
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        options: DataSpec,
        *,
        seed: int = 0,
        labels: bool = True,
        unlabelled: UnlabelledSpec | None = None,
        before: DataRecord | None = None,
    ) -> None:
        super().__init__()
        if not labels and options.class_weights != "none":
            raise SpecError(f"data.class_weights={options.class_weights} counts labels; use none")
        if not labels and options.sampling != "once":
            raise SpecError(f"data.sampling={options.sampling} counts labels; use once")
        if labels and unlabelled is not None:
            raise SpecError("unlabelled= gives images without labels; use it with labels=False")
        self.options = options
        self.seed = seed
        self.labels = labels
        self.unlabelled = unlabelled
        self.before = before
        self.train_sampler: EpochBatchSampler | None = None
        self._parts: Parts | None = None
        self._labelled: Parts | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """K; known before the data are there, except for folders of the user's own."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.options.image_size or self.native_size

    @property
    def parts(self) -> Parts:
        """The raw parts, read at the first use.

        Raises:
            SpecError: an option of a source without labels is missing or unknown.
            DataError: as `load`, or of such a source; or a part is empty.
        """
        if self._parts is None:
            parts = self.load()
            check_parts(parts, self.options.name)
            if self.before is not None:
                parts = held(parts, self.before)
            self._labelled = parts
            if not self.labels:
                form = Form(
                    self.channels,
                    self.native_size if self.has_fixed_size else None,
                    is_upright=self.options.upright,
                )
                parts = without_labels(parts, self.unlabelled, form, side=self.image_size)
            self._parts = parts
        return self._parts

    @property
    def labelled_parts(self) -> tuple[RawImages, ...]:
        """The parts with all of their labels, whatever is learned from.

        Raises:
            DataError: as `parts`.
        """
        _ = self.parts
        assert self._labelled is not None  # `parts` has read them
        return self._labelled.train, self._labelled.validation, self._labelled.test

    @property
    def overview(self) -> str:
        """Number of classes, and of images in the parts.

        Raises:
            DataError: as `parts`.
        """
        parts = self.parts
        counts = [len(images) for images in (parts.train, parts.validation, parts.test)]
        return f"{self.num_classes} classes, {'/'.join(map(str, counts))} images"

    def examined(self) -> list[str]:
        """Look at the images before training; what there is to tell, line by line.

        Raises:
            DataError: as `parts`, or a file cannot be read.
        """
        return [self.overview]

    @cached_property
    def content(self) -> str:
        """A hash of the classes and the training files by name; empty where images are no files.

        Raises:
            DataError: as `parts`.
        """
        return content_of(self.parts.train, tuple(self.classes))

    def record(self) -> DataRecord:
        """What a run writes down of its parts; reads the sizes of files, but no file.

        Raises:
            DataError: as `parts`.
        """
        options = self.options
        return record_of(
            self.parts, name=options.name, split=options.split, classes=tuple(self.classes)
        )

    def load(self) -> Parts:
        """Read the raw parts, with all labels.

        Raises:
            DataError: something is missing or unreadable.
        """
        raise NotImplementedError

    def download(self) -> None:
        """Fetch the data if they are missing; a family that cannot does nothing."""

    def training_transform(self) -> Transform:
        """Random transform of the training images."""
        raise NotImplementedError

    def evaluation_transform(self) -> Transform:
        """Transform without randomness, of all other images."""
        raise NotImplementedError

    def check(self) -> None:
        """Check that the data exist or may be downloaded; reads no image.

        Raises:
            SpecError: an option of a source without labels is missing or unknown.
            DataError: they do not; says what is missing and how to get it.
        """
        check_data(self.options)
        if self.unlabelled is not None:
            check_unlabelled(self.unlabelled)

    def prepare_data(self) -> None:
        """Check and, if data.download is true, download; Lightning calls it in one process."""
        self.check()
        if self.options.download:
            self.download()

    def setup(self, stage: str | None = None) -> None:
        """Read the parts; `stage` does not matter."""
        _ = self.parts

    def prepare(self) -> None:
        """All that Lightning does before it asks for a loader, for use without a trainer."""
        if ranks.place().local_rank == 0:
            self.prepare_data()
        ranks.wait()
        self.setup()

    def position(self) -> Position | None:
        """(epoch, batches done of it) where training goes on; None without a trainer.

        The sampler asks at the start of each epoch.
        """
        if self.trainer is None or self.train_sampler is None:
            return None
        return training_position(self.trainer, len(self.train_sampler))

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of the training part, from `position` on.

        An incomplete last batch is kept unless it is a single image. Of several processes each
        gets its share of every batch.
        """
        self.train_sampler = self.train_order(
            locate=self.position, rank=ranks.rank(), ranks=ranks.size()
        )
        return self._loader(self.training_set(mixing=self._mixing()), self.train_sampler)

    def training_set(self, *, mixing: Mixing | None = None) -> SeededDataset:
        """The training part, augmented as the options say.

        Args:
            mixing: of each image with another; None leaves the labels what they are.
        """
        options, transform = self.options, self.evaluation_transform()
        if options.augment:
            transform = augmented(
                self.training_transform(),
                operations=options.rand_augment,
                magnitude=options.rand_magnitude,
                erase=options.erase,
            )
        return SeededDataset(self.parts.train, transform, seed=self.seed, mixing=mixing)

    def _mixing(self) -> Mixing | None:
        options = self.options
        if not options.is_mixed:
            return None
        return Mixing(
            classes=self.num_classes,
            mixup=options.mixup,
            cutmix=options.cutmix,
            balance=self._balance(),
        )

    def _balance(self) -> Tensor | None:
        """Labels, where classes are drawn equally often."""
        is_balanced = self.options.sampling == "balanced"
        return cast(LabelledImages, self.parts.train).labels if is_balanced else None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a full training epoch, told without making a loader.

        Lightning's own count starts the train loader, and with it the place where a resumed run
        goes on, before that place is known.
        """
        return len(self.train_order())

    def batches_of(self, images: RawImages) -> int:
        """Batches of a part in a whole evaluation, told without making a loader."""
        return math.ceil(len(images) / self.options.batch_size)

    def train_order(self, **options: Any) -> EpochBatchSampler:
        """A sampler of the training part at its beginning, with options of EpochBatchSampler."""
        count, size = len(self.parts.train), self.options.batch_size
        options.setdefault("drop_last", count > size and count % size < _SMALLEST_BATCH)
        return EpochBatchSampler(count, size, seed=self.seed, balance=self._balance(), **options)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation part in a fixed order."""
        return self._plain_loader(self.parts.validation)

    def test_dataloader(self) -> DataLoader[Sample]:
        """The test part in a fixed order."""
        return self._plain_loader(self.parts.test)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch with its images in the memory format of the runtime, as the loaders give it.

        A loader of the user's own may not.
        """
        return batch if runtime().memory_format == "contiguous" else in_channels_last(batch)

    def sample_batch(self) -> Batch:
        """One batch of the training part, not augmented and always the same, for probes."""
        dataset = PlainDataset(self.parts.train, self.evaluation_transform())
        count = min(len(dataset), self.options.batch_size)
        return collated([dataset[index] for index in range(count)])

    def class_weights(self) -> Tensor | None:
        """Weights of the classes in the loss, (K,) float32, or None for data.class_weights=none.

        w_c = N / (K n_c) with n_c of the N training images in class c, so that every class has
        the same weight in total and the mean weight of an image is 1.

        Raises:
            DataError: a class has no training image.
        """
        if self.options.class_weights == "none":
            return None
        images = cast(LabelledImages, self.parts.train)  # refused without labels
        counts = torch.bincount(images.labels, minlength=self.num_classes)
        if not bool(counts.all()):
            raise DataError(
                f"data.class_weights=balanced needs an image of every class; "
                f"{self.classes[int(counts.argmin())]!r} has none in the training part, "
                "use data.class_weights=none"
            )
        return counts.sum() / (self.num_classes * counts.float())

    def _plain_loader(self, images: RawImages) -> DataLoader[Sample]:
        dataset = PlainDataset(images, self.evaluation_transform())
        options = self.options
        batches = FixedBatchSampler(
            len(images), options.batch_size, rank=ranks.rank(), ranks=ranks.size()
        )
        return self._loader(dataset, batches)

    def _loader(
        self, dataset: Dataset[Sample], batches: EpochBatchSampler | FixedBatchSampler
    ) -> DataLoader[Sample]:
        options = self.options
        return image_loader(
            dataset,
            options.workers,
            seed=self.seed,
            timeout=options.timeout,
            batch_sampler=batches,
        )


def first_batches(data: ImageData, count: int) -> Iterator[Batch]:
    """The first `count` batches of the training order of epoch 0, augmented as in training.

    A function of the data options and the seed alone, wherever the run stands; at most one epoch.
    Images are not mixed: what is measured on these batches is for images of one class.
    """
    dataset = data.training_set()
    sampler = data.train_order(drop_last=False)
    for keys in islice(sampler, count):
        yield collated([dataset[key] for key in keys])


def preprocessing_of(data: ImageData, classes: tuple[str, ...]) -> Preprocessing:
    """What `data` does to an image that is not augmented."""
    return Preprocessing(
        channels=data.channels,
        size=data.image_size,
        crop=data.crop,
        mean=data.mean,
        std=data.std,
        classes=classes,
        upright=data.options.upright,
    )
