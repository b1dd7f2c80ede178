"""Checks of call sites: that the n-th call is the same one for any images, and in training."""

import warnings

import torch
from torch import Tensor, nn

from qat.errors import SpecError, one_line
from qat.quantize.activations import activation_quantizers
from qat.quantize.call_sites import CALL_SITES, owners
from qat.quantize.picture import Picture
from qat.quantize.products import trace


def check_calls(model: nn.Module, example: Tensor, before: Picture) -> None:
    """Refuse a network whose quantizers at calls would be mixed up: by more images, or in training.

    Args:
        model: prepared network.
        example: images.
        before: what the network did with them, before inputs got their quantizers.
    """
    sites = [name for name in activation_quantizers(model) if f"{CALL_SITES}." in name]
    if not sites:
        return
    picture = _more_images(model, example)
    _check_counts(model, sites, before, picture, len(example))
    try:
        training = trace(model, example, training=True)
    except Exception as error:  # BatchNorm of one value, or a forward that wants targets
        _warn("in training mode", error)
        return
    differing = [n for n in sites if training.module_calls.get(n) != 1]
    mixed = [o for o in owners(model) if _are_mixed(picture, training, o)]
    if differing or mixed:
        name = next(iter(differing), sites[0])
        raise SpecError(
            "the forward calls other functions in training than in evaluation, so that quantizers "
            f"at calls, such as {name}, would be mixed up; give each use of the activation a "
            "module of its own"
        )


def _more_images(model: nn.Module, example: Tensor) -> Picture:
    """A pass with one image more: what is done for each image has as many calls as images."""
    try:
        return trace(model, torch.cat([example, example[:1]]))
    except Exception as error:  # a forward for one number of images
        _warn("on one image more", error)
        return trace(model, example)


def _warn(how: str, error: Exception) -> None:
    warnings.warn(
        f"prepare() could not run the network {how} ({one_line(error)[:100]}), so it is not known "
        "whether it makes the same calls then, by which its quantizers are found",
        stacklevel=5,
    )


def _check_counts(
    model: nn.Module, sites: list[str], before: Picture, picture: Picture, images: int
) -> None:
    for name in owners(model):
        if len(_calls_of(before, name)) != len(_calls_of(picture, name)):
            raise SpecError(
                f"{name or 'the network'} makes more calls for {images + 1} images than for "
                f"{images}; quantizers at calls need a forward that makes the same calls for any "
                "number of images"
            )
    for name in sites:
        if picture.module_calls.get(name) != 1:
            raise SpecError(
                f"the quantizer {name} would act {picture.module_calls.get(name, 0)} times instead "
                "of once; give each use of the activation a module of its own"
            )


def _are_mixed(picture: Picture, training: Picture, owner: str) -> bool:
    """Whether the n-th call of a function is another in training; more at the end do no harm."""
    calls = _calls_of(picture, owner)
    return _calls_of(training, owner)[: len(calls)] != calls


def _calls_of(picture: Picture, owner: str) -> list[tuple[str, str]]:
    """Function and module of the counted calls that the forward of a module leads to."""
    calls = [c for c in picture.calls if any(name == owner for name, _ in c.frames)]
    return [(call.function, call.module) for call in calls]
