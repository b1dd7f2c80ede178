"""Torchvision's ResNets, with a stem for small images.

Options come from the config, the shape of the task (`num_classes`, `in_channels`, `image_size`)
from the data at run time.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model_weights, resnet

from qat.errors import CheckpointError, SpecError
from qat.spec.model import (
    Stem,
    TorchvisionName,
    TorchvisionOptions,
    check_shape,
    first_line,
    read_options,
)

_LARGEST_SMALL_IMAGE = 64  # pixels; above it the standard stem's fourfold reduction costs little


class BasicBlock(resnet.BasicBlock):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's block with one ReLU module per use, not in place, so that taps stay valid."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        result: Tensor = self.relu2(self.bn2(self.conv2(out)) + shortcut)
        return result


class Bottleneck(resnet.Bottleneck):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's bottleneck with one ReLU module per use, not in place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        result: Tensor = self.relu3(self.bn3(self.conv3(out)) + shortcut)
        return result


_RESNETS: dict[str, tuple[type[nn.Module], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


def torchvision_resnet(
    name: TorchvisionName,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    stem: Stem = "auto",
    weights: str | None = None,
) -> nn.Module:
    """Build a torchvision ResNet whose every activation use is its own module.

    The state dict has torchvision's keys. Without `weights` the start is He fan-out.

    Args:
        name: resnet18, resnet34 or resnet50.
        num_classes: K >= 1; the last layer is new unless K = 1000.
        in_channels: channels of an image, >= 1; with `weights`, 1 or 3.
        image_size: height and width in pixels, >= 1.
        stem: "small" (3x3 stride 1, no max-pool), "standard" or "auto": small up to 64 pixels.
        weights: "default" loads torchvision's ImageNet weights; the standard stem only.

    Raises:
        SpecError: an option has a wrong type or value, or the weights do not fit.
        CheckpointError: the weights cannot be fetched.
    """
    read_options(TorchvisionOptions, {"name": name, "stem": stem, "weights": weights})
    check_shape(num_classes, in_channels, image_size)
    if stem == "auto":
        stem = "small" if image_size <= _LARGEST_SMALL_IMAGE else "standard"
    block, layers = _RESNETS[name]
    model: nn.Module = resnet.ResNet(block, layers, num_classes=num_classes)
    model.relu = nn.ReLU()
    conv = partial(nn.Conv2d, in_channels, 64, bias=False)
    if stem == "small":
        model.conv1, model.maxpool = conv(kernel_size=3, padding=1), nn.Identity()
    else:
        model.conv1 = conv(kernel_size=7, stride=2, padding=3)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if weights is not None:
        if stem == "small" or in_channels not in (1, 3):
            raise SpecError(
                f"model.weights=default needs model.stem=standard and images of 1 or 3 channels, "
                f"got {stem} and {in_channels}; use model.weights=null"
            )
        _load_imagenet(model, name)
    return model


def _load_imagenet(model: nn.Module, name: str) -> None:
    try:
        state = get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"model.weights=default: the weights of {name} cannot be fetched "
            f"({first_line(error)}); connect to the network once, or use model.weights=null"
        ) from error
    own = model.state_dict()
    if own["conv1.weight"].shape[1] == 1:
        # a grey image is the same value in three channels, and the convolution adds them up
        state["conv1.weight"] = state["conv1.weight"].sum(dim=1, keepdim=True)
    if own["fc.weight"].shape != state["fc.weight"].shape:
        state |= {key: own[key] for key in ("fc.weight", "fc.bias")}
    model.load_state_dict(state)
