"""Layers and networks that cannot be exported: named in one line, with what to do."""

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import Converted
from qat.models.timm_model import timm_model
from qat.quantize.prepare import prepare
from qat.spec.quant import QuantSpec
from support.exported import images


def graph_of(net, example=None):
    example = images(2) if example is None else example
    prepare(net, QuantSpec(), example=example)
    return network_graph(net, Converted({}, {}), example)


def behind_conv(module):
    """A network whose second layer is `module`."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), module, head)


class Turned(nn.Module):
    """A one-dimensional convolution over the pixels of a map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(2)).unflatten(2, x.shape[2:])


KNOWN = "export knows Conv2d, Linear, BatchNorm"
LAYERS = {
    "tanh": (nn.Tanh(), r"the layer 1 \(Tanh\) cannot be exported", KNOWN),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), r"the layer 1 \(ConvTranspose2d\)", KNOWN),
    "group-norm": (nn.GroupNorm(2, 4), r"the layer 1 \(GroupNorm\)", KNOWN),
    "reflect": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        r"the layer 1 \(Conv2d\) pads by reflect", "padding_mode=zeros",
    ),
    "even-same": (
        nn.Conv2d(4, 4, 2, padding="same"),
        r"the layer 1 \(Conv2d\) pads one side more", "use an odd kernel",
    ),
    "no-statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        r"the layer 1 \(BatchNorm2d\) has no running statistics", "track_running_stats=True",
    ),
    "divided": (
        nn.AvgPool2d(3, 1, 1, divisor_override=2),
        r"the layer 1 \(AvgPool2d\) divides by a number of its own", "divisor_override",
    ),
    "bilinear": (
        nn.Upsample(scale_factor=2, mode="bilinear"),
        r"the layer 1 \(Upsample\) enlarges by no whole number, or not", KNOWN,
    ),
    "partly-flat": (
        nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8))),
        r"the layer 1.0 \(Flatten\) keeps some axes of \(4, 8, 8\)", r"use Flatten\(1\)",
    ),
    "rows": (nn.Linear(8, 8), r"the layer 1 \(Linear\) maps vectors within \(4, 8, 8\)", "flatten"),
    "one-dimensional": (Turned(), "the function flatten in 1 makes", KNOWN),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_named_with_what_to_do(name):
    module, what, cure = LAYERS[name]
    with pytest.raises(SpecError, match=f"{what}.*{cure}") as caught:
        graph_of(behind_conv(module))
    assert "\n" not in str(caught.value)


def test_a_one_dimensional_convolution_is_named():
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    with pytest.raises(SpecError, match=r"the layer 0 \(Conv1d\) cannot be exported; export knows"):
        graph_of(net, torch.randn(2, 3, 8))


NETWORKS = {
    "vit_tiny_patch16_224": "the function flatten in patch_embed",
    "convnext_atto": "the function permute in stem.1",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_other_parts_names_the_first_of_them(name):
    net = timm_model(name, num_classes=5, in_channels=3, image_size=32)
    with pytest.raises(SpecError, match=f"{NETWORKS[name]}.*; export knows Conv2d"):
        graph_of(net, images(2, size=32))


class Branching(nn.Module):
    """Goes one way or the other, by the values of its input."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.fc(x.flatten(1))


class Several(Branching):
    """Answers two tensors."""

    def forward(self, x):
        return self.fc(x.flatten(1)), x


class Indices(Branching):
    """Takes a maximum with its place."""

    def forward(self, x):
        return self.fc(nn.functional.max_pool2d(x, 1, return_indices=True)[0].flatten(1))


def test_control_flow_that_depends_on_data_is_refused():
    with pytest.raises(
        SpecError, match=r"Branching cannot be followed: .* control flow\); export knows"
    ) as caught:
        graph_of(Branching())
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:prepare.. found no activation")
def test_several_answers_are_refused():
    with pytest.raises(SpecError, match=r"Several answers tuple .*take a model that answers its"):
        graph_of(Several())


def test_a_value_that_is_no_tensor_is_refused():
    with pytest.raises(SpecError, match=r"max_pool2d.* makes no single tensor"):
        graph_of(Indices())
