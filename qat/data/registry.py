"""Registry of data sets by name; a family's module is imported only when its name is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

from qat.spec.data import FAMILIES, DataSpec

if TYPE_CHECKING:
    from qat.data.module import ImageData


def build_data(options: DataSpec, **run: Any) -> "ImageData":
    """Data module of the data set `options.name`; nothing is read from disk yet.

    Args:
        options: the option group `data`.
        **run: what the run adds, as `ImageData`: seed, labels, unlabelled.

    Raises:
        SpecError: as `ImageData`.
    """
    module, _, family = FAMILIES[options.name].data_module.partition(":")
    cls = getattr(importlib.import_module(f"qat.data.{module}"), family)
    data: ImageData = cls(options, **run)
    return data
