"""Pretrained networks of torchvision and timm, by name, with their own number of classes."""

from typing import Any, NamedTuple

from torch import nn

from qat.errors import CheckpointError, SpecError
from qat.models.hub import hub_or_cache
from qat.spec.model import first_line
from qat.spec.timm_names import near


class Norm(NamedTuple):
    """Mean and deviation of each channel, of pixels in 0..1, that a network was trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def pretrained(library: str, name: str) -> tuple[nn.Module, Norm]:
    """A network with the library's default weights, for 3 channels, and what it was trained with.

    Args:
        library: torchvision or timm.
        name: as the library names it, for timm perhaps with a tag.

    Raises:
        SpecError: the library has no such network, or no weights of it.
        CheckpointError: the weights are not cached and cannot be fetched.
    """
    make = {"torchvision": _torchvision, "timm": _timm}[library]
    try:
        return make(name)
    except OSError as error:
        raise CheckpointError(
            f"distill.teacher={library}/{name}: its weights cannot be fetched "
            f"({first_line(error)}); connect to the network once, or give a checkpoint"
        ) from error


def check_pretrained(library: str, name: str) -> None:
    """Refuse a name that the library does not know; nothing is built or fetched.

    Args:
        library: torchvision or timm.
        name: as the library names it, for timm perhaps with a tag.

    Raises:
        SpecError: there is no such network, or no such tag of it.
    """
    {"torchvision": _check_torchvision, "timm": _check_timm}[library](name)


def _check_torchvision(name: str) -> None:
    from torchvision import models

    # detection, segmentation and video networks have dotted or other modules; logits only here
    names = models.list_models(module=models)
    if name not in names:
        raise SpecError(_unknown("torchvision", name, names))


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        raise SpecError(_unknown("timm", name, timm.list_models()))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise _without_weights(name, error) from error


def _torchvision(name: str) -> tuple[nn.Module, Norm]:
    from torchvision import models

    _check_torchvision(name)
    weights = models.get_model_weights(name).DEFAULT
    wanted = weights.transforms()
    return models.get_model(name, weights=weights), Norm(tuple(wanted.mean), tuple(wanted.std))


def _timm(name: str) -> tuple[nn.Module, Norm]:
    import timm

    _check_timm(name)
    try:
        with hub_or_cache():
            net = timm.create_model(name, pretrained=True)
    except RuntimeError as error:  # no weights at all
        raise _without_weights(name, error) from error
    config: Any = net.pretrained_cfg
    return net, Norm(tuple(config["mean"]), tuple(config["std"]))


def _without_weights(name: str, error: Exception) -> SpecError:
    return SpecError(
        f"distill.teacher=timm/{name}: {first_line(error)}; see timm.list_pretrained()"
    )


def _unknown(library: str, name: str, names: list[str]) -> str:
    return f"distill.teacher={library}/{name} is no network of {library}; {near(name, names)}"
