import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.models.resnet import torchvision_resnet
from qat.models.small import small_model
from qat.models.timm_model import timm_model
from qat.quantize.prepare import prepare
from qat.quantize.stages import check_layers, feature_maps, stage_outputs
from qat.spec.quant import QuantSpec

TASK = {"num_classes": 10, "in_channels": 3}


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (
            lambda: small_model("resnet20", **TASK, image_size=32),
            32,
            [f"layer{i}" for i in (1, 2, 3)],
        ),
        (
            lambda: torchvision_resnet("resnet18", **TASK, image_size=32),
            32,
            [f"layer{i}" for i in (1, 2, 3, 4)],
        ),
        (
            lambda: torchvision_resnet("resnet50", **TASK, image_size=224),
            224,
            [f"layer{i}" for i in (1, 2, 3, 4)],
        ),
        (
            lambda: torchvision_resnet("resnet18", **TASK, image_size=8),
            8,
            ["layer1", "layer2", "layer3"],
        ),
        (lambda: timm_model("regnetx_002", **TASK, image_size=64), 64, ["s1", "s2", "s3", "s4"]),
    ],
)
def test_stages_of_known_networks(make, size, expected):
    assert stage_outputs(make(), torch.randn(2, 3, size, size)) == expected


def test_a_prepared_student_has_the_stages_of_its_float_teacher():
    float_net = timm_model("convnext_atto", **TASK, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    student = prepare(
        timm_model("convnext_atto", **TASK, image_size=64), QuantSpec(), example=images
    )
    assert stage_outputs(student, images) == stage_outputs(float_net, images)


def test_stages_of_a_plain_network_are_the_activations_before_pooling():
    net = small_model("vgg11", **TASK, image_size=32)
    maps = feature_maps(net, torch.randn(2, 3, 32, 32))
    stages = stage_outputs(net, torch.randn(2, 3, 32, 32))
    assert [tuple(maps[name][1:]) for name in stages] == [
        (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2),
    ]  # fmt: skip
    assert all(isinstance(net.get_submodule(name), nn.ReLU) for name in stages)


def test_looking_leaves_no_trace():
    net = small_model("resnet20", **TASK, image_size=8).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    stage_outputs(net, torch.randn(2, 3, 8, 8))
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_networks_without_maps_are_refused():
    with pytest.raises(SpecError, match="no feature map of more than one position"):
        stage_outputs(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(2, 3, 2, 2))


def test_maps_with_channels_behind_are_refused():
    net = timm_model("swin_tiny_patch4_window7_224", **TASK, image_size=224)
    with pytest.raises(SpecError, match=r"\(N, H, W, C\)"):
        stage_outputs(net, torch.randn(1, 3, 224, 224))


def test_a_wrong_layer_lists_the_candidates():
    net = small_model("resnet20", **TASK, image_size=8)
    with pytest.raises(
        SpecError,
        match=r"distill\.layers: 'layer7' has no feature map; candidates "
        r"are conv1 16x8x8, .*layer3 64x2x2",
    ):
        check_layers(net, torch.randn(1, 3, 8, 8), ["layer1", "layer7"], key="distill.layers")
    check_layers(net, torch.randn(1, 3, 8, 8), ["layer1", "layer2.0.conv1"], key="distill.layers")


def test_an_output_that_is_overwritten_is_no_stage():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    assert stage_outputs(net, torch.randn(2, 3, 8, 8)) == ["2"]
    assert "1" not in feature_maps(net, torch.randn(2, 3, 8, 8))
