"""Image folders: ImageNet, and folders of the user's own."""

from qat.data.dataset import Transform
from qat.data.image_files import FileImages, scan
from qat.data.module import ImageData
from qat.data.split import Parts, carve
from qat.data.transforms import Pixels, centred, zoomed
from qat.errors import DataError
from qat.spec.data_files import class_names, home_of, part_folders


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

    def _scan(self, part: str) -> FileImages:
        folder = part_folders(home_of(self.options))[part]
        classes = self.classes
        strangers = sorted(set(class_names(folder)) ^ set(classes))
        if strangers:
            raise DataError(
                f"{folder} and the training folder must hold the same classes; only one of them "
                f"has {', '.join(strangers[:5])}{' ...' if len(strangers) > 5 else ''}"
            )
        return scan(folder, classes)

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
        validation, train = carve(self._scan("train"), (0.01,))
        return Parts(train, validation, self._scan("val"))


class ImageFolder(FolderData):
    """Images of the user's own: root/<class>/, or root/train/, root/val/ and perhaps root/test/.

    Parts that have no folder are carved out of the training images, fixed and stratified: 20 %
    each for validation and test of a root without train/, 10 % for test where only test/ is
    missing. Adding a file changes the carved parts, so keep folders for results that must last.
    """

    def load(self) -> Parts:
        """List the files; none is opened."""
        parts = part_folders(home_of(self.options))
        images = self._scan("train")
        if "val" not in parts:
            test, validation, train = carve(images, (0.2, 0.2))
            return Parts(train, validation, test)
        if "test" not in parts:
            test, train = carve(images, (0.1,))
            return Parts(train, self._scan("val"), test)
        (train,) = carve(images, ())
        return Parts(train, self._scan("val"), self._scan("test"))
