"""Tiny-ImageNet: 200 classes of 64 x 64 photographs in the folder of its zip file."""

from contextlib import AbstractContextManager
from pathlib import Path

from qat.data.dataset import Transform
from qat.data.image_files import FileImages, file_images, files_of
from qat.data.module import ImageData
from qat.data.reading import reading
from qat.data.split import Parts, carve
from qat.data.transforms import Pixels, cropped, plain
from qat.errors import DataError
from qat.spec.data import FAMILIES
from qat.spec.data_files import home_of, root_of

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


class TinyImageNet(ImageData):
    """90,000 images for training, 10,000 for validation, 10,000 for test.

    Test is the official validation set (the labels of the official test set are not public);
    validation is a fixed stratified tenth of the training set. Labels follow the sorted WordNet
    ids, as an image folder's would.
    """

    channels = 3
    native_size = 64
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)

    @property
    def num_classes(self) -> int:
        """200."""
        return 200

    @property
    def classes(self) -> tuple[str, ...]:
        """The first English word of each class.

        Raises:
            DataError: the data are not there.
        """
        home = home_of(self.options)
        with self._reading():
            lines = (home / "words.txt").read_text("utf-8").splitlines()
            words = dict(line.split("\t", 1) for line in lines if line)
            return tuple(words[wnid].split(",")[0] for wnid in _wnids(home))

    def download(self) -> None:
        """Fetch and unpack the zip file (248 MB) unless the folder is there.

        Raises:
            DataError: no network, no space, or a damaged file.
        """
        from torchvision.datasets.utils import download_and_extract_archive

        try:
            home_of(self.options)
        except DataError:
            with self._reading(download=True):
                download_and_extract_archive(_URL, str(root_of(self.options)), md5=_MD5)

    def load(self) -> Parts:
        """List the files; none is opened.

        Raises:
            DataError: a file is missing or has an unknown class.
        """
        home = home_of(self.options)
        with self._reading():
            wnids = _wnids(home)
            validation, train = carve(files_of(home / "train", wnids, home), (0.1,))
            return Parts(train, validation, _official_validation(home, wnids))

    def training_transform(self) -> Transform:
        """Random crop with a border of 8 pixels, and a flip."""
        return cropped(self._pixels(), padding=8, flip=True)

    def evaluation_transform(self) -> Transform:
        """Normalise."""
        return plain(self._pixels())

    def _reading(self, *, download: bool = False) -> AbstractContextManager[None]:
        title = FAMILIES[self.options.name].title
        return reading(title, root_of(self.options), download=download)

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)


def _wnids(home: Path) -> list[str]:
    return sorted((home / "wnids.txt").read_text("utf-8").split())


def _official_validation(home: Path, wnids: list[str]) -> FileImages:
    label = {wnid: number for number, wnid in enumerate(wnids)}
    lines = (home / "val" / "val_annotations.txt").read_text("utf-8").splitlines()
    rows = [line.split("\t")[:2] for line in lines if line]
    paths = [str(home / "val" / "images" / name) for name, _ in rows]
    return file_images(paths, [label[wnid] for _, wnid in rows], home)
