"""A network's architecture by name: out of a run's config, and built again for a packed file."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from qat.errors import CheckpointError, SpecError
from qat.export.header import Architecture, Family, Preprocessing
from qat.lit.models import small_model, timm_model, torchvision_resnet

if TYPE_CHECKING:
    from qat.lit.data.module import ImageData

_FACTORIES: dict[Family, Callable[..., nn.Module]] = {
    "small": small_model,
    "torchvision": torchvision_resnet,
    "timm": timm_model,
}
_MODULE = "qat.lit.models"  # where a config names them
# where first weights came from is not part of what a network is
_STARTS = ("weights", "pretrained")


def architecture_of(model: Mapping[str, Any]) -> Architecture | None:
    """What the config group `model` names, None for a network of the user's own."""
    for family, factory in _FACTORIES.items():
        if model.get("_target_") == f"{_MODULE}.{factory.__name__}":
            plain = {k: v for k, v in model.items() if not k.startswith("_") and k not in _STARTS}
            return Architecture(family=family, options=plain)
    return None


def built_network(architecture: Architecture, preprocessing: Preprocessing) -> nn.Module:
    """A float network of this architecture with new weights; fetches nothing.

    Raises:
        CheckpointError: the options are none of the family's, or do not go together.
    """
    try:
        return _FACTORIES[architecture.family](
            **{k: v for k, v in architecture.options.items() if k not in _STARTS},
            num_classes=len(preprocessing.classes),
            in_channels=preprocessing.channels,
            image_size=preprocessing.size,
        )
    except (SpecError, TypeError) as error:
        raise CheckpointError(
            f"the architecture {architecture.family} cannot be built: {error}"
        ) from None


def preprocessing_of(data: "ImageData", classes: tuple[str, ...]) -> Preprocessing:
    """What `data` does to an image that is not augmented."""
    return Preprocessing(
        channels=data.channels,
        size=data.image_size,
        crop=data.crop,
        mean=data.mean,
        std=data.std,
        classes=classes,
    )
