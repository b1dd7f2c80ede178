"""Transforms: augmentation and normalisation, all through torchvision.transforms.v2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from qat.data.dataset import Transform
from qat.errors import DataError, SpecError
from qat.spec.header import Preprocessing, shorter_side

_MOST_SCALED = 2**27  # pixels of an image before its middle is cut out


@dataclass(frozen=True, slots=True)
class Pixels:
    """What an image must look like at the end.

    Attributes:
        size: height and width in pixels.
        native: of the raw image in pixels; equal to `size` if nothing is resized.
        mean: of each channel, of pixels in 0..1.
        std: of each channel, of pixels in 0..1.
    """

    size: int
    native: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def plain(pixels: Pixels) -> Transform:
    """Resize if necessary, and normalise."""
    return _compose(_resize(pixels), pixels)


def cropped(pixels: Pixels, *, padding: int, flip: bool) -> Transform:
    """Random crop out of an image with black borders, perhaps a random flip.

    Args:
        pixels: the wanted image.
        padding: width of the border in pixels of the native size.
        flip: mirror every second image, left to right.
    """
    border = round(padding * pixels.size / pixels.native)
    steps = [*_resize(pixels), v2.RandomCrop(pixels.size, padding=border)]
    return _compose([*steps, v2.RandomHorizontalFlip()] if flip else steps, pixels)


def jittered(pixels: Pixels) -> Transform:
    """Small affine maps: turns of up to 10 degrees, an eighth of the size, 0.9 .. 1.1 in scale."""
    affine = v2.RandomAffine(
        10,
        translate=(1 / 8, 1 / 8),
        scale=(0.9, 1.1),
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    return _compose([*_resize(pixels), affine], pixels)


def zoomed(pixels: Pixels) -> Transform:
    """Random part of 8 to 100 % of the area, stretched by up to 4:3, and a random flip."""
    return _compose([v2.RandomResizedCrop(pixels.size), v2.RandomHorizontalFlip()], pixels)


def centred(pixels: Pixels) -> Transform:
    """The middle 7/8 of the image: 256 pixels on the shorter side, then 224, and in proportion."""
    return _middle(pixels, shorter_side(pixels.size))


def from_file(preprocessing: Preprocessing) -> Transform:
    """What an image file of any size needs before it enters the network."""
    # native 0: resize always
    pixels = Pixels(preprocessing.size, 0, preprocessing.mean, preprocessing.std)
    if preprocessing.crop == "whole":
        return plain(pixels)
    return _middle(pixels, preprocessing.resize_shorter)


def augmented(transform: Transform, *, operations: int, magnitude: int, erase: float) -> Transform:
    """A transform of this module with RandAugment and random erasing.

    RandAugment works on the image as it was cropped, before it is normalised; an erased rectangle
    has the mean colour, 0.

    Args:
        transform: `cropped`, `jittered` or `zoomed`.
        operations: of RandAugment, 0 for none.
        magnitude: of them, 0..30.
        erase: probability of erasing, 0..1.

    Raises:
        SpecError: the transform is none of this module.

    Source: arXiv:1909.13719 (RandAugment), arXiv:1708.04896 (random erasing).
    """
    if not operations and not erase:
        return transform
    if not isinstance(transform, v2.Compose) or not isinstance(transform.transforms[-1], _Finish):
        raise SpecError(
            "data.rand_augment and data.erase need a training transform of qat.data.transforms; "
            "use 0 for both"
        )
    *steps, finish = transform.transforms
    before = [v2.RandAugment(operations, magnitude)] if operations else []
    behind = [v2.RandomErasing(erase)] if erase else []
    more: Transform = v2.Compose([*steps, *before, finish, *behind])
    return more


def _middle(pixels: Pixels, shorter: int) -> Transform:
    def bounded(image: Any) -> Any:
        """Refuse an image so thin that it would take gigabytes before its middle is cut out."""
        size = v2.functional.get_size(image)
        if shorter * shorter * max(size) > _MOST_SCALED * min(size):
            raise DataError(
                f"an image of {size[1]} x {size[0]} pixels is too thin to have a shorter side of "
                f"{shorter}; cut it"
            )
        return image

    return _compose([bounded, v2.Resize(shorter), v2.CenterCrop(pixels.size)], pixels)


def _resize(pixels: Pixels) -> list[Any]:
    return [] if pixels.size == pixels.native else [v2.Resize((pixels.size, pixels.size))]


def _compose(steps: Sequence[Any], pixels: Pixels) -> Transform:
    transform: Transform = v2.Compose([*steps, _Finish(pixels)])
    return transform


@dataclass(frozen=True, slots=True)
class _Finish:
    """PILToTensor, ToDtype and Normalize, without v2's look at every argument: 40 us each."""

    pixels: Pixels

    def __call__(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            # stored by channels, as the batch will be: a third less time for what follows
            image = v2.functional.pil_to_tensor(image).contiguous()
        image = v2.functional.to_dtype_image(image, torch.float32, scale=True)
        mean, std = list(self.pixels.mean), list(self.pixels.std)
        normal: Tensor = v2.functional.normalize_image(image, mean, std)
        return normal
