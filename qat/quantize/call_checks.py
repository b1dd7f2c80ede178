"""Checks of call sites: that the n-th call is the same one for any images, and in training."""

import torch
from torch import Tensor, nn

from qat.errors import SpecError
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
    _check_counts(sites, before, picture, len(example))
    try:
        training = trace(model, example, training=True)
    except Exception:  # BatchNorm of one value, or a forward that wants targets: nothing is seen
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
    except Exception:  # a forward for one number of images
        return trace(model, example)


def _check_counts(sites: list[str], before: Picture, picture: Picture, images: int) -> None:
    for name, count in before.module_calls.items():
        now = picture.module_calls.get(name, 0)
        if now != count:
            raise SpecError(
                f"{name or 'the network'} runs {count} times for {images} images and {now} times "
                f"for {images + 1}; quantizers at calls need a forward that makes the same calls "
                "for any number of images"
            )
    for name in sites:
        if picture.module_calls.get(name) != 1:
            raise SpecError(
                f"the quantizer {name} would act {picture.module_calls.get(name, 0)} times instead "
                "of once; give each use of the activation a module of its own"
            )


def _are_mixed(picture: Picture, training: Picture, owner: str) -> bool:
    """Whether the n-th call of a function is another in training; more at the end do no harm."""
    evaluation, other = _calls_of(picture, owner), _calls_of(training, owner)
    return any(other.get(name, [])[: len(calls)] != calls for name, calls in evaluation.items())


def _calls_of(picture: Picture, owner: str) -> dict[str, list[str]]:
    """Function -> modules of the counted calls that the forward of a module leads to."""
    found: dict[str, list[str]] = {}
    for call in picture.calls:
        if any(name == owner for name, _ in call.frames):
            found.setdefault(call.function, []).append(call.module)
    return found
