"""Patches of the photographs inside scikit-learn: images of another domain, without a download."""

from typing import Any

import torch
from torch import Tensor

from qat.errors import DataError
from qat.lit.data.form import Form, Unlabelled
from qat.unlabelled_spec import Photographs


def photograph_patches(options: Photographs, form: Form) -> Unlabelled:
    """Random square patches of scikit-learn's two photographs (427 x 640, CC BY).

    Photograph, side (its logarithm uniform between the task's size and `largest` times as much)
    and place are drawn once, from `seed`; a patch is then resized to the task's size with
    antialiasing. Grey is luma. With `stretch` the darkest value of a patch becomes 0 and the
    brightest 255.

    Raises:
        DataError: the task's images are larger than the photographs.
    """
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    smallest, bound = form.size or 224, min(photographs[0].shape[1:])
    if smallest > bound:
        raise DataError(
            f"unlabelled.photographs has sides of {bound} pixels at most, the task wants "
            f"{smallest}; use unlabelled=folder"
        )
    boxes = _boxes(options, smallest, min(bound, smallest * options.largest), photographs[0].shape)

    def read(index: int) -> Tensor:
        photograph, top, left, side = boxes[index]
        return photographs[photograph][:, top : top + side, left : left + side]

    def stretched(image: Any) -> Tensor:
        pixels: Tensor = form(image).float()
        low, high = pixels.amin(), pixels.amax()
        return ((pixels - low) * 255 / (high - low).clamp(min=1)).round().to(torch.uint8)

    return Unlabelled(options.patches, read, stretched if options.stretch else form)


def _boxes(
    options: Photographs, smallest: float, largest: float, shape: torch.Size
) -> list[tuple[int, int, int, int]]:
    """(photograph, top, left, side) of each patch."""
    generator = torch.Generator().manual_seed(options.seed)
    draws = torch.rand(options.patches, 4, generator=generator, dtype=torch.float64)
    boxes = []
    for which, size, row, column in draws.tolist():
        side = round(smallest * (largest / smallest) ** size)
        top, left = int(row * (shape[1] - side + 1)), int(column * (shape[2] - side + 1))
        boxes.append((int(2 * which), top, left, side))
    return boxes
