"""Unlabelled patches of the photographs inside scikit-learn: another domain, without a download."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.data.unlabelled.form import Form
from qat.errors import DataError
from qat.spec.unlabelled import Photographs

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Patches:
    """Square patches, cut as they are asked for.

    Attributes:
        photographs: (C, H, W) each, uint8.
        boxes: (photograph, top, left, side) of each patch.
        form: of the task.
        is_stretched: whether the darkest value of a patch becomes 0 and the brightest 255.
    """

    photographs: tuple[Tensor, ...]
    boxes: tuple[Box, ...]
    form: Form
    is_stretched: bool

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Tensor:
        photograph, top, left, side = self.boxes[index]
        window = self.photographs[photograph][:, top : top + side, left : left + side]
        patch: Tensor = self.form(window)
        return _stretched(patch) if self.is_stretched else patch


def photograph_patches(options: Photographs, form: Form, *, smallest: int) -> Patches:
    """Random square patches of scikit-learn's two photographs (427 x 640, CC BY).

    Photograph, side (its logarithm uniform between `smallest` and `largest` times as much, 427
    pixels at most) and place are drawn once, from `seed`; a patch then takes the form of the task.
    Grey is luma. Of unstretched 8 x 8 patches 42 % have a deviation below 0.02 of
    the whole range, hence `stretch`.

    Args:
        options: number, largest side, stretch and seed.
        form: of the task.
        smallest: side of the smallest patches in pixels, that of the task's images.

    Raises:
        DataError: the task's images are larger than the photographs.
    """
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    photographs = tuple(torch.tensor(image).permute(2, 0, 1) for image in images)
    bound = min(photographs[0].shape[1:])
    if smallest > bound:
        raise DataError(
            f"unlabelled.photographs has sides of {bound} pixels at most, the task wants "
            f"{smallest}; use unlabelled=folder"
        )
    boxes = _boxes(options, smallest, min(bound, smallest * options.largest), photographs[0].shape)
    return Patches(photographs, boxes, form, options.stretch)


def _stretched(pixels: Tensor) -> Tensor:
    low, high = pixels.float().aminmax()
    levels = (pixels - low) * 255 / (high - low).clamp(min=1)
    return levels.round().to(torch.uint8)


def _boxes(
    options: Photographs, smallest: float, largest: float, shape: torch.Size
) -> tuple[Box, ...]:
    generator = torch.Generator().manual_seed(options.seed)
    draws = torch.rand(options.patches, 4, generator=generator, dtype=torch.float64)
    boxes = []
    for which, size, row, column in draws.tolist():
        side = round(smallest * (largest / smallest) ** size)
        top, left = int(row * (shape[1] - side + 1)), int(column * (shape[2] - side + 1))
        boxes.append((int(2 * which), top, left, side))
    return tuple(boxes)
