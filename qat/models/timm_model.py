"""Timm models by name."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from qat.errors import CheckpointError, SpecError
from qat.models.hub import hub_or_cache
from qat.spec.model import TimmOptions, check_shape, first_line, read_options
from qat.spec.timm_names import near


def timm_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    pretrained: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a timm model, and prove by one forward pass that it takes images of this size.

    Args:
        name: a name of `timm.list_models()`, with or without a pretrained tag.
        num_classes: K >= 1.
        in_channels: channels of an image, >= 1.
        image_size: height and width in pixels, >= 1; a multiple of a transformer's patch.
        pretrained: start from timm's weights for the name.
        kwargs: further arguments of `timm.create_model`, e.g. `patch_size`.

    Raises:
        SpecError: an option is wrong, the name is unknown, or the model cannot take such images.
        CheckpointError: the weights cannot be fetched.
    """
    options = dict(kwargs or {})
    read_options(TimmOptions, {"name": name, "pretrained": pretrained, "kwargs": options})
    check_shape(num_classes, in_channels, image_size)
    check_name(name, pretrained=pretrained)
    if _has_fixed_input(name):
        options["img_size"] = image_size
    options |= {"num_classes": num_classes, "in_chans": in_channels}
    model = _create(name, options, pretrained=pretrained)
    _check_patches(model, name, image_size)
    _check_forward(model, name, (1, in_channels, image_size, image_size), num_classes)
    return model


def check_name(name: str, *, pretrained: bool = False) -> None:
    """Refuse a name that timm does not know; nothing is built or fetched.

    Args:
        name: with or without a pretrained tag.
        pretrained: whether there must be weights of it.

    Raises:
        SpecError: there is no such model, tag, or weights; those that come near are named.
    """
    import timm  # here and below: two seconds, and most runs do without

    if not timm.is_model(name):
        cure = near(name, timm.list_models())
        raise SpecError(f"model.name must be a model of timm, got {name!r}; {cure}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise SpecError(
            f"model.name={name} has an unknown tag; use one of {', '.join(tags)}"
        ) from error
    if pretrained and not timm.is_model_pretrained(name):
        raise SpecError(f"model.pretrained=true: timm has no weights of {name}; use false")


def _has_fixed_input(name: str) -> bool:
    """Whether the named model is built for one image size and so takes `img_size`."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def _create(name: str, options: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    import timm

    try:
        with hub_or_cache() if pretrained else nullcontext():
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise CheckpointError(
            f"model.pretrained=true: the weights of {name} cannot be fetched "
            f"({first_line(error)}); connect to the network once, or use model.pretrained=false"
        ) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise SpecError(
            f"model.name={name} cannot be built with {dict(options)} ({first_line(error)}); "
            f"change model.kwargs or the image size"
        ) from error
    return model


def _check_patches(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse images that are no whole number of patches: timm would drop the rest in silence."""
    from timm.layers.patch_embed import PatchEmbed

    embedding = getattr(model, "patch_embed", None)
    if not isinstance(embedding, PatchEmbed):
        return
    patch = max(embedding.patch_size)
    if image_size % patch:
        fitting = max(p for p in range(1, max(2, image_size // 4 + 1)) if image_size % p == 0)
        raise SpecError(
            f"model.name={name} cuts patches of {patch} pixels, which {image_size} pixels are no "
            f"multiple of; use e.g. +model.kwargs.patch_size={fitting}, or another image size"
        )


def _check_forward(
    model: nn.Module, name: str, shape: tuple[int, int, int, int], num_classes: int
) -> None:
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SpecError(
            f"model.name={name} cannot take images of {shape[1]}x{shape[2]}x{shape[3]} "
            f"({first_line(error)}); use larger images or another model"
        ) from error
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        raise SpecError(f"model.name={name} gives no logits of {num_classes} classes; take another")
