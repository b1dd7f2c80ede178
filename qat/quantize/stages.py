"""Stages of a network: where its feature maps are, found by running it once."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.quantize.modes import evaluating

_STEM_CONVS = 1  # layers of a stem, whose output is no stage yet
_LISTED = 40  # names in a message


def feature_maps(net: nn.Module, example: Tensor) -> dict[str, torch.Size]:
    """Every module whose output is a feature map: dotted name -> (N, C, H, W).

    In the order in which they finish, a container after its members. Mode, parameters and buffers
    of `net` stay as they are.

    Args:
        net: any network.
        example: images (N, C, H, W), on the network's device.
    """
    return {found.name: found.shape for found in _outputs(net, example) if found.is_lasting}


def stage_outputs(net: nn.Module, example: Tensor) -> list[str]:
    """The modules whose outputs are the network's stages, in the order in which they finish.

    At each height and width of more than one position that a convolution gives, it is the
    outermost module with such an output; of several the one that finishes last. One that ends
    before the second convolution is a stem and left out. In a ResNet these are its stages, in a
    plain VGG the activations before the pooling.

    Args:
        net: any network.
        example: images (N, C, H, W), on the network's device.

    Raises:
        SpecError: the network has no feature map (N, C, H, W) of more than one position, or lays
            its maps out as (N, H, W, C).
    """
    if str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC"):
        raise SpecError(
            f"{type(net).__name__} lays its feature maps out as (N, H, W, C); distillation of "
            "features needs (N, C, H, W), use distill.features.loss=none"
        )
    best: dict[tuple[int, int], tuple[int, _Output]] = {}
    outputs = _outputs(net, example)
    modules = dict(net.named_modules())
    convolved = {o.shape[2:] for o in outputs if isinstance(modules[o.name], nn.Conv2d)}
    for found in outputs:
        _, _, h, w = found.shape
        depth = found.name.count(".")
        # an identity may stand behind a stage, a pooled map is none of its own
        is_output = (h, w) in convolved and not isinstance(modules[found.name], nn.Identity)
        if is_output and found.is_lasting and h * w > 1 and depth <= best.get((h, w), (depth,))[0]:
            best.pop((h, w), None)  # so that the dict is in the order of the last ones
            best[h, w] = (depth, found)
    stages = [found.name for _, found in best.values() if found.convs > _STEM_CONVS]
    if not stages:
        raise SpecError(
            f"{type(net).__name__} has no feature map of more than one position; use larger "
            "images, or distill.features.loss=none"
        )
    return stages


def check_layers(net: nn.Module, example: Tensor, names: Sequence[str], *, key: str) -> None:
    """Check that each name is a module whose output is a feature map.

    Args:
        net: any network.
        example: images (N, C, H, W), on the network's device.
        names: dotted module names.
        key: of the option that gave the names, for messages.

    Raises:
        SpecError: one is not; lists those that are.
    """
    shapes = feature_maps(net, example)
    for name in names:
        if name not in shapes:
            outer = [n for n in shapes if n.count(".") < 2] or list(shapes)
            listed = ", ".join(f"{n} {_text(shapes[n])}" for n in outer[:_LISTED])
            more = " ..." if len(outer) > _LISTED else ""
            raise SpecError(f"{key}: {name!r} has no feature map; candidates are {listed}{more}")


def _text(shape: torch.Size) -> str:
    return "x".join(str(side) for side in shape[1:])


class _Output(NamedTuple):
    """A 4-d output: of which module, its shape, the convolutions run by then, and whether it lasts.

    What a later module overwrites in place does not, and cannot be tapped.
    """

    name: str
    shape: torch.Size
    convs: int
    is_lasting: bool


@torch.no_grad()
def _outputs(net: nn.Module, example: Tensor) -> list[_Output]:
    outputs: list[tuple[str, Tensor, int, int]] = []
    convs = 0

    def recording(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, out: Any) -> None:
            nonlocal convs
            convs += isinstance(module, nn.Conv2d)
            if isinstance(out, Tensor) and out.ndim == 4:
                outputs.append((name, out, out._version, convs))

        return record

    with ExitStack() as hooks, evaluating(net):
        for name, module in net.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(recording(name)).remove)
        with torch.compiler.set_stance("force_eager"):
            net(example)
    return [
        _Output(name, out.shape, count, out._version == version)
        for name, out, version, count in outputs
    ]
