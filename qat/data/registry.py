"""Data sets by name; a family's module is imported only when its name is asked for."""

import importlib
from typing import TYPE_CHECKING

from qat.spec.data import FAMILIES, DataSpec

if TYPE_CHECKING:
    from qat.data.module import ImageData


def build_data(options: DataSpec, *, seed: int = 0) -> "ImageData":
    """The data module of `options.name`; nothing is read from disk yet.

    Args:
        options: the option group `data`.
        seed: of the run; moves the order and the augmentation, never the split.
    """
    module, _, family = FAMILIES[options.name].data_module.partition(":")
    cls = getattr(importlib.import_module(f"qat.data.{module}"), family)
    data: ImageData = cls(options, seed=seed)
    return data
