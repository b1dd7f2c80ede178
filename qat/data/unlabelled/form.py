"""Conversion of raw images of any origin to the form in which a task expects its own."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qat.data.image_files import to_rgb


@dataclass(frozen=True, slots=True)
class Form:
    """What a raw image must look like for the task's own transform.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: height and width in pixels, None for a task that cuts its images itself.
    """

    channels: int
    size: int | None

    def __call__(self, image: Any) -> Any:
        """Convert a PIL image of any mode or a tensor (C, H, W): channels, then the middle square.

        Grey is luma; the square is resized with antialiasing.

        Raises:
            ValueError: a PIL image of float pixels.
        """
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional as V

        if not isinstance(image, Tensor):
            image = to_rgb(image)
        elif image.ndim == 2:
            image = image.unsqueeze(0)
        channels = image.shape[0] if isinstance(image, Tensor) else len(image.getbands())
        if channels != self.channels:
            image = V.rgb_to_grayscale(image) if self.channels == 1 else V.grayscale_to_rgb(image)
        if self.size is None:
            return image
        middle = V.center_crop(image, min(V.get_size(image)))
        return V.resize(middle, [self.size, self.size], interpolation=v2.InterpolationMode.BILINEAR)
