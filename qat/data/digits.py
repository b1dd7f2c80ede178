"""Handwritten digits of scikit-learn: 1,797 real grey images of 8 x 8, inside the package."""

import torch

from qat.data.dataset import TensorImages, Transform
from qat.data.module import ImageData
from qat.data.split import Parts, carve
from qat.data.transforms import Pixels, jittered, plain

_WHITE = 16.0  # largest grey level of the raw images


class Digits(ImageData):
    """Ten digits, 1,079 images for training, 359 for validation and 359 for test.

    The split is stratified and fixed. Mean and deviation are those of the training part.
    """

    channels = 1
    native_size = 8
    mean = (0.3054,)
    std = (0.3761,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits 0..9."""
        return tuple("0123456789")

    def load(self) -> Parts:
        """Read the images and cut them 60/20/20."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / _WHITE
        every = TensorImages(images, torch.tensor(raw.target, dtype=torch.int64))
        test, validation, train = carve(every, (0.2, 0.2))
        return Parts(train, validation, test)

    def training_transform(self) -> Transform:
        """Small turns, shifts of a pixel and scales; no flip: a mirrored 2 is no digit."""
        return jittered(self._pixels())

    def evaluation_transform(self) -> Transform:
        """Normalise."""
        return plain(self._pixels())

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)
