"""Image folders: ImageNet, and folders or lists of the user's own."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, product

import numpy as np
import torch

from qat.data.dataset import Transform
from qat.data.image_files import FileImages, file_images, files_of
from qat.data.module import ImageData
from qat.data.scan import Scan, check_readable, remarks, scan
from qat.data.split import Parts, carve, carve_by_path
from qat.data.transforms import Pixels, centred, zoomed
from qat.errors import DataError
from qat.spec.data import HELD_SHARE
from qat.spec.data_files import class_names, home_of, part_folders
from qat.spec.image_lists import Labelled, are_listed, classes_of, image_lists
from qat.spec.unlabelled import ENDINGS, files_below


class FolderData(ImageData):
    """Images of any size in class folders, cut to a square.

    Raises:
        DataError: of `classes` and `load`: something is missing.
    """

    channels = 3
    native_size = 224
    has_fixed_size = False
    crop = "centre"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders of the training part, sorted."""
        return class_names(part_folders(home_of(self.options))["train"])

    def training_transform(self) -> Transform:
        """Random part of the image and a flip."""
        return zoomed(self._pixels())

    def evaluation_transform(self) -> Transform:
        """The middle of the image."""
        return centred(self._pixels())

    def _files(self, part: str) -> FileImages:
        home = home_of(self.options)
        folder = part_folders(home)[part]
        classes = self.classes
        strangers = sorted(set(class_names(folder)) ^ set(classes))
        if strangers:
            raise DataError(
                f"{folder} and the training folder must hold the same classes; only one of them "
                f"has {', '.join(strangers[:5])}{' ...' if len(strangers) > 5 else ''}"
            )
        return replace(files_of(folder, classes, home), is_upright=self.options.upright)

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)


class ImageNet(FolderData):
    """The 1,000 classes of ILSVRC 2012.

    Test is the official validation set of 50,000 images; validation is a fixed stratified 1 % of
    the training set (12,812 of 1,281,167 images).
    """

    @property
    def num_classes(self) -> int:
        """1,000."""
        return 1000

    def load(self) -> Parts:
        """List the files; none is opened."""
        if len(self.classes) != self.num_classes:
            raise DataError(
                f"data=imagenet needs {self.num_classes} class folders, {home_of(self.options)} "
                f"has {len(self.classes)}; use data=image_folder for other sets"
            )
        validation, train = carve(self._files("train"), (0.01,))
        return Parts(train, validation, self._files("val"))


class ImageFolder(FolderData):
    """Images of the user's own: root/<class>/, or root/train/, root/val/ and perhaps root/test/.

    Instead of folders, data.labels may say the classes, and data.train_list, data.val_list and
    data.test_list the parts; see `image_lists`. Parts that nothing says are carved out of the
    training images, fixed and stratified: 20 % each for validation and test, 10 % for test where
    only that is missing. With data.split=path a file more or less moves at most one other of its
    class at each cut; with data.split=index it moves many.
    """

    _found: Scan | None = None

    @cached_property
    def _listed(self) -> dict[str, Labelled] | None:
        """What lists say, read once; None where folders do."""
        options = self.options
        return image_lists(options, home_of(options)) if are_listed(options) else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels of the training part, or names of its class folders, sorted."""
        return super().classes if self._listed is None else classes_of(self._listed)

    def load(self) -> Parts:
        """List the files; only data.unreadable=skip reads them, to leave some out."""
        files = self._carved_files()
        if self.options.unreadable == "skip":
            wrong = [os.fsencode(path) for path in self._scan(files).problems]
            files = [part.select(np.flatnonzero(~np.isin(part.paths, wrong))) for part in files]
        return Parts(*files)

    def examined(self) -> list[str]:
        """Scan the files, as data.scan says."""
        told = super().examined()
        if self.options.scan == "none":
            return told
        files = [part for part in self.labelled_parts if isinstance(part, FileImages)]
        found = self._found or self._scan(files)
        if self.options.unreadable == "refuse":
            check_readable(found)
        note = remarks(found, self._counts(files), self._others())
        return [f"{told[0]}; {found.cost}", *([note] if note else [])]

    def _counts(self, files: Sequence[FileImages]) -> dict[str, int]:
        """Class -> its images; nothing where no label is to be read."""
        if not self.labels:
            return {}
        labels = torch.cat([part.labels for part in files])
        counts = labels.bincount(minlength=self.num_classes).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def _scan(self, files: Sequence[FileImages]) -> Scan:
        depth = self.options.scan
        assert depth != "none"  # refused together with skip
        paths = [os.fsdecode(path) for part in files for path in part.paths]
        self._found = scan(paths, depth, workers=self.options.workers)
        return self._found

    def _others(self) -> Counter[str]:
        """Ending -> number of the files in class folders that are no images by their names."""
        if self._listed is not None:
            return Counter()
        places = product(part_folders(home_of(self.options)).values(), self.classes)
        paths = chain.from_iterable(files_below(folder / name) for folder, name in places)
        endings = (os.path.splitext(path)[1].lower() for path in paths)
        return Counter(ending for ending in endings if ending not in ENDINGS)

    def _carved_files(self) -> list[FileImages]:
        given = self._given()
        missing = [part for part in ("test", "val") if part not in given]
        shares = {
            "test": self.options.test_share or (HELD_SHARE if "val" in missing else 0.1),
            "val": self.options.val_share or HELD_SHARE,
        }
        *held, train = self._carved(given["train"], [shares[part] for part in missing])
        parts = given | dict(zip(missing, held, strict=True)) | {"train": train}
        return [parts[part] for part in ("train", "val", "test")]

    def _given(self) -> dict[str, FileImages]:
        """Part -> its files: train, and what else folders or lists say."""
        home = home_of(self.options)
        if self._listed is None:
            return {part: self._files(part) for part in part_folders(home)}
        label = {name: number for number, name in enumerate(self.classes)}
        return {
            part: replace(
                file_images(
                    [os.path.join(home, path) for path in named],
                    [label[name] for name in named.values()],
                    home,
                ),
                is_upright=self.options.upright,
            )
            for part, named in self._listed.items()
        }

    def _carved(self, images: FileImages, shares: Sequence[float]) -> list[FileImages]:
        if self.options.split == "path":
            return carve_by_path(images, images.names, shares)
        return carve(images, shares)
