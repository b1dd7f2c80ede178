"""LeNet-5, VGG-11 and the CIFAR ResNets: small float networks, ready to be quantized.

Every use of an activation is its own `nn.ReLU` module, because surgery turns each of them into a
quantizer with its own step; a batch norm precedes each activation, so its input is near Gaussian.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.spec.model import (
    SmallName,
    SmallOptions,
    check_shape,
    read_options,
)

_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class LeNet5(nn.Sequential):
    """Maps (N, C, H, H) images to (N, K) logits: two 5x5 convolutions, three linear layers.

    The feature map in front of `fc1` is 16 x 5 x 5 at 28 and 32 pixels, as in the classic network;
    smaller images are padded in both convolutions, larger ones pooled by a wider window.

    Args:
        num_classes: K >= 1.
        in_channels: C >= 1.
        image_size: H in pixels, >= 8.
        norm: put a batch norm in front of each activation; needs batches of two or more images.
        norm_affine: give the batch norms a scale and a shift; the STE paper leaves both out.

    Raises:
        SpecError: the image is too small.

    Source: arXiv:1903.05662 (batch norm in front of each activation, without scale and shift).
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        norm: bool = True,
        norm_affine: bool = True,
    ) -> None:
        if image_size < 8:
            raise SpecError(
                f"image_size must be >= 8 for lenet5, got {image_size}; resize the data"
            )
        pads = 0 if image_size >= 32 else 2, 0 if image_size >= 28 else 2
        middle = (image_size + 2 * pads[0] - 4) // 2
        side = middle + 2 * pads[1] - 4
        window = max(2, side // 5)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(in_channels, 6, 5, padding=pads[0])
        _add_activation(layers, 1, nn.BatchNorm2d(6, affine=norm_affine) if norm else None)
        layers["pool1"] = nn.MaxPool2d(2)
        layers["conv2"] = nn.Conv2d(6, 16, 5, padding=pads[1])
        _add_activation(layers, 2, nn.BatchNorm2d(16, affine=norm_affine) if norm else None)
        layers["pool2"] = nn.MaxPool2d(window)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(16 * (side // window) ** 2, 120)
        _add_activation(layers, 3, nn.BatchNorm1d(120, affine=norm_affine) if norm else None)
        layers["fc2"] = nn.Linear(120, 84)
        _add_activation(layers, 4, nn.BatchNorm1d(84, affine=norm_affine) if norm else None)
        layers["fc3"] = nn.Linear(84, num_classes)
        super().__init__(layers)
        _init_convolutions(self)


class Vgg11(nn.Sequential):
    """Maps (N, C, H, H) images to (N, K) logits: eight 3x3 convolutions, one linear layer.

    64 M 128 M 256 256 M 512 512 M 512 512 M (M halves the map), then the mean over what is left
    (one pixel at 32) and 512 -> K. A pool that would leave no pixel of a small image is skipped.

    Args:
        num_classes: K >= 1.
        in_channels: C >= 1.
        image_size: H in pixels, >= 1.
        norm_affine: give the batch norms a scale and a shift.

    Source: arXiv:1808.05240, the authors' file (convolutions with bias, one linear layer).
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        norm_affine: bool = True,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width, side, index, pools = in_channels, image_size, 0, 0
        for item in _VGG11:
            if isinstance(item, int):
                index += 1
                layers[f"conv{index}"] = nn.Conv2d(width, item, 3, padding=1)
                _add_activation(layers, index, nn.BatchNorm2d(item, affine=norm_affine))
                width = item
            elif side >= 2:
                side, pools = side // 2, pools + 1
                layers[f"pool{pools}"] = nn.MaxPool2d(2)
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(width, num_classes)
        super().__init__(layers)
        _init_convolutions(self)


class CifarResNet(nn.Sequential):
    """Maps (N, C, H, H) images of any size to (N, K) logits: ResNet-(6n+2) with 16/32/64 channels.

    Args:
        depth: 6n + 2 with n >= 1: 20, 32, 56, 110.
        num_classes: K >= 1.
        in_channels: C >= 1.
        width: channels of the first stage, an even number; the next have twice and four times it.
        norm_affine: give the batch norms a scale and a shift.

    Raises:
        SpecError: depth is not 6n + 2.

    Source: arXiv:1512.03385, sec. 4.2 (shortcut A: subsample and pad with zeros).
    """

    def __init__(
        self,
        depth: int = 20,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        norm_affine: bool = True,
    ) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise SpecError(
                f"depth must be 6n + 2 with n >= 1, got {depth}; take 20, 32, 56 or 110"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        _add_activation(layers, 1, nn.BatchNorm2d(width, affine=norm_affine))
        for stage, out in enumerate((width, 2 * width, 4 * width), start=1):
            inputs = [width] + [out] * (blocks - 1)
            stack = [_Block(i, out, norm_affine=norm_affine) for i in inputs]
            layers[f"layer{stage}"] = nn.Sequential(*stack)
            width = out
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(width, num_classes)
        super().__init__(layers)
        _init_convolutions(self)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the map where it widens."""

    def __init__(self, inputs: int, outputs: int, *, norm_affine: bool) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.padding = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, affine=norm_affine)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, affine=norm_affine)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self._shortcut(x)
        result: Tensor = self.relu2(out)
        return result

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


def _add_activation(
    layers: OrderedDict[str, nn.Module], index: int, norm: nn.Module | None
) -> None:
    if norm is not None:
        layers[f"bn{index}"] = norm
    layers[f"relu{index}"] = nn.ReLU()


def _init_convolutions(model: nn.Module) -> None:
    """He initialisation by fan-out (arXiv:1502.01852); linear layers keep torch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_model(
    name: SmallName,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    norm_affine: bool = True,
) -> nn.Module:
    """Build a network of `qat.models.small`.

    Args:
        name: lenet5, vgg11, resnet20, resnet32, resnet56 or resnet110.
        num_classes: K >= 1.
        in_channels: channels of an image, >= 1.
        image_size: height and width in pixels, >= 1; lenet5 needs 8.
        norm_affine: batch norms have a scale and a shift.

    Raises:
        SpecError: an option has a wrong type or value.
    """
    read_options(SmallOptions, {"name": name, "norm_affine": norm_affine})
    check_shape(num_classes, in_channels, image_size)
    make: dict[str, Callable[..., nn.Module]] = {
        "lenet5": partial(LeNet5, image_size=image_size),
        "vgg11": partial(Vgg11, image_size=image_size),
    }
    network = make.get(name) or partial(CifarResNet, int(name.removeprefix("resnet")))
    return network(num_classes=num_classes, in_channels=in_channels, norm_affine=norm_affine)
