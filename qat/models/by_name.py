"""Architecture by name: out of a run's config, and built again for a packed file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from qat.errors import CheckpointError
from qat.models.resnet import torchvision_resnet
from qat.models.small import small_model
from qat.models.timm_model import timm_model
from qat.spec.header import Architecture, Family, Preprocessing
from qat.spec.keys import entries
from qat.storage.reading import parsing

_FACTORIES: dict[Family, Callable[..., nn.Module]] = {
    "small": small_model,
    "torchvision": torchvision_resnet,
    "timm": timm_model,
}
_MOST_IN_BUFFERS = 50_000_000
_MOST_MODULES = 20_000  # the largest of timm have some thousands
_LARGEST_NUMBER = 1_000_000  # a list of so many entries is still made in no time
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
    name = f"the architecture {architecture.family}"
    for key, _, value in entries(architecture.options):
        if isinstance(value, (int, float)) and not abs(value) <= _LARGEST_NUMBER:
            raise CheckpointError(f"{name} has {key}={value}, as no network has")
    with parsing(name, "export the network again", verb="built"):
        # on the meta device a module of any width costs nothing, until it is counted
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"), _counted(largest):
            _built(architecture, preprocessing)
        with _counted(largest):
            return _built(architecture, preprocessing)


@contextmanager
def _counted(largest: int) -> Iterator[None]:
    """A block in which networks are built, up to a number of weights and of modules.

    They are counted while they are built: a network of a million layers would never be done.
    """
    hooks = (
        register_module_parameter_registration_hook(
            _counter(largest, "weights, as its file cannot hold")
        ),
        register_module_buffer_registration_hook(_counter(_MOST_IN_BUFFERS, "values in buffers")),
        register_module_module_registration_hook(_counter(_MOST_MODULES, "modules")),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _counter(most: int, what: str) -> Callable[[nn.Module, str, Any], None]:
    """A hook that counts what a module is given: the numbers of a tensor, or one."""
    found = 0

    def count(module: nn.Module, name: str, given: torch.Tensor | nn.Module | None) -> None:
        nonlocal found
        found += given.numel() if isinstance(given, torch.Tensor) else given is not None
        if found > most:
            raise CheckpointError(f"the architecture has more than {most:,} {what}")

    return count


def _built(architecture: Architecture, preprocessing: Preprocessing) -> nn.Module:
    return _FACTORIES[architecture.family](
        **{k: v for k, v in architecture.options.items() if k not in _STARTS},
        num_classes=len(preprocessing.classes),
        in_channels=preprocessing.channels,
        image_size=preprocessing.size,
    )
