"""Data sets by name; a family's module is imported only when its name is asked for."""

import importlib
from typing import TYPE_CHECKING

from qat.errors import SpecError
from qat.spec.data import DataSpec
from qat.spec.data_files import check_data

if TYPE_CHECKING:
    from qat.data.module import ImageData

__all__ = ["FAMILIES", "build_data", "check_data"]

FAMILIES: dict[str, str] = {
    "digits": "digits:Digits",
    "glyphs": "glyphs.glyphs:Glyphs",
    "mnist": "torchvision_sets:Mnist",
    "fashion_mnist": "torchvision_sets:FashionMnist",
    "cifar10": "torchvision_sets:Cifar10",
    "cifar100": "torchvision_sets:Cifar100",
    "tiny_imagenet": "tiny_imagenet:TinyImageNet",
    "imagenet": "folders:ImageNet",
    "image_folder": "folders:ImageFolder",
}


def build_data(options: DataSpec, *, seed: int = 0) -> "ImageData":
    """The data module of `options.name`; nothing is read from disk yet.

    Args:
        options: the option group `data`.
        seed: of the run; moves the order and the augmentation, never the split.

    Raises:
        SpecError: unknown name.
    """
    if options.name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise SpecError(f"data.name must be one of {known}; got {options.name!r}")
    module, _, family = FAMILIES[options.name].partition(":")
    cls = getattr(importlib.import_module(f"qat.data.{module}"), family)
    data: ImageData = cls(options, seed=seed)
    return data
