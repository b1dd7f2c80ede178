"""Registry of data sets by name; a family's module is imported only when its name is asked for."""

from pkgutil import resolve_name
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
    family = resolve_name(f"qat.data.{FAMILIES[options.name].data_module}")
    data: ImageData = family(options, **run)
    return data
