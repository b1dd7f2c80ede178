"""Conversion of raw images of any origin to the form in which a task expects its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat.data.image_files import to_rgb


@dataclass(frozen=True, slots=True)
class Form:
    """What a raw image must look like for the task's own transform.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: height and width in pixels, None for a task that cuts its images itself.
        is_upright: whether image files are turned as their EXIF orientation says.
    """

    channels: int
    size: int | None
    is_upright: bool = False

    def __call__(self, image: Any) -> Any:
        """Convert a PIL image of any mode or a tensor (C, H, W): channels, then the middle square.

        Grey is luma; the square is resized with antialiasing.

        Raises:
            ValueError: pixels whose range is unknown: a PIL image of floats or 32-bit integers, a
                tensor of other integers than uint8, or of floats outside 0..1.
        """
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional as V

        if not isinstance(image, Tensor):
            image = to_rgb(image)
        else:
            _check_range(image)
            image = image.unsqueeze(0) if image.ndim == 2 else image
        channels = image.shape[0] if isinstance(image, Tensor) else len(image.getbands())
        if channels != self.channels:
            image = V.rgb_to_grayscale(image) if self.channels == 1 else V.grayscale_to_rgb(image)
        if self.size is None:
            return image
        middle = V.center_crop(image, min(V.get_size(image)))
        return V.resize(middle, [self.size, self.size], interpolation=v2.InterpolationMode.BILINEAR)


def _check_range(pixels: Tensor) -> None:
    """Refuse what scaling to 0..1 would turn black, or leave far outside."""
    is_known = pixels.dtype == torch.uint8 or (
        pixels.is_floating_point() and 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    )
    if not is_known:
        raise ValueError(
            f"pixels of {pixels.dtype} in {pixels.min():g}..{pixels.max():g} have no known range, "
            "give uint8, or floats in 0..1"
        )
