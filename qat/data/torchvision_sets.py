"""MNIST, FashionMNIST, CIFAR-10 and CIFAR-100, read by torchvision."""

from typing import Any, ClassVar

import torch

from qat.data.dataset import TensorImages, Transform
from qat.data.module import ImageData
from qat.data.reading import reading
from qat.data.split import Parts, carve
from qat.data.transforms import Pixels, cropped, plain
from qat.spec.data import FAMILIES
from qat.spec.data_files import root_of

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class TorchvisionData(ImageData):
    """Small images held in memory.

    Test is the official test set; validation is a fixed stratified part of the official training
    set.

    Attributes:
        reader: class of torchvision.datasets.
        names: of the classes.
        validation_share: fraction of the official training set.
        padding: border of the random crop in pixels.
        flip: whether a mirrored image is still of its class.
    """

    reader: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    validation_share: ClassVar[float]
    padding: ClassVar[int]
    flip: ClassVar[bool]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.names

    def download(self) -> None:
        """Fetch and unpack what is missing; torchvision checks the md5 sums.

        Raises:
            DataError: no network, no space, or a damaged file.
        """
        for train in (True, False):
            self._read(train=train, download=True)

    def load(self) -> Parts:
        """Read the official sets and carve validation out of training.

        Raises:
            DataError: a file is missing or damaged.
        """
        self.check()
        official = _tensors(self._read(train=True))
        validation, train = carve(official, (self.validation_share,))
        return Parts(train, validation, _tensors(self._read(train=False)))

    def training_transform(self) -> Transform:
        """Random crop with a border, and a flip where that makes sense."""
        return cropped(self._pixels(), padding=self.padding, flip=self.flip)

    def evaluation_transform(self) -> Transform:
        """Normalise."""
        return plain(self._pixels())

    def _read(self, *, train: bool, download: bool = False) -> Any:
        from torchvision import datasets

        root = root_of(self.options)
        with reading(FAMILIES[self.options.name].title, root, download=download):
            return getattr(datasets, self.reader)(root, train=train, download=download)

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)


def _tensors(dataset: Any) -> TensorImages:
    images = torch.as_tensor(dataset.data)
    # MNIST is (N, H, W), CIFAR is (N, H, W, C)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return TensorImages(images, torch.as_tensor(dataset.targets, dtype=torch.int64))


class Mnist(TorchvisionData):
    """Handwritten digits: 55,000 for training, 5,000 for validation, 10,000 for test."""

    reader = "MNIST"
    names = tuple("0123456789")
    channels = 1
    native_size = 28
    mean = (0.1307,)
    std = (0.3081,)
    validation_share = 1 / 12
    padding = 2
    flip = False


class FashionMnist(Mnist):
    """Clothes: 55,000 for training, 5,000 for validation, 10,000 for test."""

    reader = "FashionMNIST"
    names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mean = (0.2860,)
    std = (0.3530,)


class Cifar10(TorchvisionData):
    """Small photographs: 45,000 for training, 5,000 for validation, 10,000 for test."""

    reader = "CIFAR10"
    names: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    channels = 3
    native_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    validation_share = 1 / 10
    padding = 4
    flip = True


class Cifar100(Cifar10):
    """Small photographs of 100 fine classes: 45,000, 5,000 and 10,000 images."""

    reader = "CIFAR100"
    names = tuple(_CIFAR100.split())
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
