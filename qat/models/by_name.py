"""Architecture by name: out of a run's config, and built again for a packed file."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from qat.errors import CheckpointError
from qat.models.resnet import torchvision_resnet
from qat.models.small import small_model
from qat.models.timm_model import timm_model
from qat.spec.header import Architecture, Family, Preprocessing

_FACTORIES: dict[Family, Callable[..., nn.Module]] = {
    "small": small_model,
    "torchvision": torchvision_resnet,
    "timm": timm_model,
}
# where first weights came from is not part of what a network is
_STARTS = ("weights", "pretrained")


def architecture_of(model: Mapping[str, Any]) -> Architecture | None:
    """What the config group `model` names, None for a network of the user's own."""
    for family, factory in _FACTORIES.items():
        if model.get("_target_") == f"{factory.__module__}.{factory.__name__}":
            plain = {k: v for k, v in model.items() if not k.startswith("_") and k not in _STARTS}
            return Architecture(family=family, options=plain)
    return None


def built_network(
    architecture: Architecture, preprocessing: Preprocessing, *, largest: int
) -> nn.Module:
    """A float network of this architecture with new weights; fetches nothing.

    Args:
        architecture: out of a file.
        preprocessing: of the same file.
        largest: number of weights that the file can hold; more are refused before any is made.

    Raises:
        CheckpointError: the options are none of the family's, do not go together, or ask for more.
    """
    try:
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            count = sum(p.numel() for p in _built(architecture, preprocessing).parameters())
            if count > largest:
                raise CheckpointError(
                    f"the architecture has {count:,} weights, its file holds {largest:,} at most"
                )
        return _built(architecture, preprocessing)
    except CheckpointError:
        raise
    except Exception as error:  # options of a file may be anything to the libraries that get them
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the architecture {architecture.family} cannot be built: {reason}"
        ) from None


def _built(architecture: Architecture, preprocessing: Preprocessing) -> nn.Module:
    return _FACTORIES[architecture.family](
        **{k: v for k, v in architecture.options.items() if k not in _STARTS},
        num_classes=len(preprocessing.classes),
        in_channels=preprocessing.channels,
        image_size=preprocessing.size,
    )
