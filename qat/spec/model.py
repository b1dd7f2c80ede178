"""Model options: the config group `model`; standard library only, for early checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qat.errors import SpecError
from qat.spec.schema import option, read
from qat.spec.targets import REFUSED_ARGUMENTS

SmallName = Literal["lenet5", "vgg11", "resnet20", "resnet32", "resnet56", "resnet110"]
TorchvisionName = Literal["resnet18", "resnet34", "resnet50"]
Stem = Literal["auto", "small", "standard"]

SMALL_NAMES: tuple[str, ...] = get_args(SmallName)
TORCHVISION_NAMES: tuple[str, ...] = get_args(TorchvisionName)

# given by the run or by another option, so they cannot be repeated in model.kwargs
_RESERVED = ("num_classes", "in_chans", "img_size", "pretrained", "model_name")
_FAMILIES = f"choose a network by model=<{' | '.join(SMALL_NAMES + TORCHVISION_NAMES)} | timm>"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallOptions:
    """Options of `qat.models.small.small_model`.

    Attributes:
        name: a network of `qat.models.small`.
        norm_affine: batch norms have a scale and a shift.
    """

    name: SmallName = option(hint=_FAMILIES)
    norm_affine: bool = option(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionOptions:
    """Options of `qat.models.resnet.torchvision_resnet`.

    Attributes:
        name: resnet18, resnet34 or resnet50.
        stem: standard (7x7 stride 2 and a max-pool), small (3x3 stride 1) or auto: by image size.
        weights: default (torchvision's ImageNet weights) or null (random).
    """

    name: TorchvisionName = option(hint=_FAMILIES)
    stem: Stem = option("auto")
    weights: Literal["default"] | None = option(None, hint="null starts from random weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmOptions:
    """Options of `qat.models.timm_model.timm_model`.

    Attributes:
        name: a name of `timm.list_models()`, with or without a pretrained tag.
        pretrained: start from timm's weights; needs the network once.
        kwargs: further arguments of `timm.create_model`, e.g. patch_size of a transformer.
    """

    name: str = option(hint="give a name, e.g. model.name=regnetx_002")
    pretrained: bool = option(False)
    kwargs: Mapping[str, Any] | None = option(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskShape:
    """What the data decide about a model.

    Attributes:
        num_classes: K, >= 1.
        in_channels: channels of an image, >= 1.
        image_size: height and width of an image in pixels, >= 1.
    """

    num_classes: int = option(low=1)
    in_channels: int = option(low=1)
    image_size: int = option(low=1)


_OPTIONS: dict[str, type[SmallOptions | TorchvisionOptions | TimmOptions]] = {
    "qat.models.small.small_model": SmallOptions,
    "qat.models.resnet.torchvision_resnet": TorchvisionOptions,
    "qat.models.timm_model.timm_model": TimmOptions,
}


def check_model(config: Mapping[str, Any]) -> None:
    """Check the config group `model` without importing torch.

    A `_target_` outside of `qat.models` is left alone: its options are its own business.

    Args:
        config: plain mapping with `_target_` and the options; Hydra's other `_keys_` are ignored.

    Raises:
        SpecError: an option is unknown, missing, or has a wrong type or value.
    """
    kind = _OPTIONS.get(str(config.get("_target_")))
    if kind is not None:
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        read_options(kind, options)


def read_options(kind: type[Any], options: Mapping[str, Any]) -> None:
    """Check the options of one factory function; `kind` is its dataclass in this module.

    Raises:
        SpecError: as `check_model`.
    """
    checked = read(kind, options, "model")
    for key in getattr(checked, "kwargs", None) or {}:
        if key in _RESERVED:
            raise SpecError(f"model.kwargs.{key} is set by the run; leave it out")
        if key in REFUSED_ARGUMENTS:
            raise SpecError(f"model.kwargs.{key} names a file; load weights by init_from=FILE")


def check_shape(num_classes: int, in_channels: int, image_size: int) -> None:
    """Check the shape of a task.

    Raises:
        SpecError: one of the three is no integer >= 1.
    """
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    read(TaskShape, shape, "")


def first_line(error: Exception) -> str:
    """The first line of another library's message, to be quoted inside one of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
