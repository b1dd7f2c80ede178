"""Shapes, sizes and activation modules of the small networks."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.models.small import CifarResNet, LeNet5, Vgg11
from support.products import mostly_slow


def build(name, *, image_size=32, **options):
    if name == "lenet5":
        return LeNet5(image_size=image_size, **options)
    if name == "vgg11":
        return Vgg11(image_size=image_size, **options)
    return CifarResNet(int(name.removeprefix("resnet")), **options)


def count(model):
    return sum(p.numel() for p in model.parameters())


def relu_calls(model, images):
    """How often each nn.ReLU module runs in one forward pass, by name."""
    calls = {n: 0 for n, m in model.named_modules() if isinstance(m, nn.ReLU)}

    def counter(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    for name in calls:
        model.get_submodule(name).register_forward_hook(counter(name))
    model(images)
    return calls


NAMES = ["lenet5", "vgg11", "resnet20"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("image_size", [8, 9, 28, 32, 64])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_one_column_per_class(name, image_size, in_channels):
    model = build(name, image_size=image_size, num_classes=7, in_channels=in_channels)
    assert model(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("image_size", [28, 32])
def test_lenet_has_the_classic_size(image_size):
    model = LeNet5(image_size=image_size, norm=False)
    # conv 6@5x5, conv 16@5x5, linear 400-120-84-10: the well-known 61706 parameters
    assert count(model) == 61706


@pytest.mark.parametrize("image_size", [*range(8, 36), 63, 224])
def test_lenet_keeps_a_small_map_at_every_image_size(image_size):
    model = LeNet5(image_size=image_size)
    assert 16 * 4 <= model.fc1.in_features <= 16 * 81
    assert model.eval()(torch.zeros(1, 1, image_size, image_size)).shape == (1, 10)


def test_lenet_refuses_images_below_8_pixels():
    with pytest.raises(SpecError, match="image_size must be >= 8"):
        LeNet5(image_size=7)


def test_vgg_has_the_size_of_its_layer_table():
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * i * o + o for i, o in pairwise(widths))
    assert count(Vgg11(num_classes=100)) == convolutions + 2 * sum(widths[1:]) + 512 * 100 + 100


@pytest.mark.parametrize(("image_size", "pools"), [(1, 0), (3, 1), (8, 3), (32, 5), (64, 5)])
def test_vgg_skips_pools_that_would_leave_nothing(image_size, pools):
    model = Vgg11(image_size=image_size)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == pools


@pytest.mark.parametrize(
    ("depth", "expected", "millions"),
    [(20, 269722, 0.27), (32, 464154, 0.46), (56, 853018, 0.85), (110, 1727962, 1.7)],
)
def test_cifar_resnets_have_the_published_sizes(depth, expected, millions):
    n = (depth - 2) // 6
    stem = 9 * 3 * 16 + 2 * 16
    same = {c: 2 * (9 * c * c + 2 * c) for c in (16, 32, 64)}
    wider = {c: 9 * (c // 2) * c + 9 * c * c + 4 * c for c in (32, 64)}
    closed_form = stem + n * same[16] + sum((n - 1) * same[c] + wider[c] for c in (32, 64)) + 650
    assert count(CifarResNet(depth)) == closed_form == expected
    assert round(expected / 1e6, 2 if millions < 1 else 1) == millions


def test_cifar_resnet_refuses_other_depths():
    for depth in (2, 18, 21, 0):
        with pytest.raises(SpecError, match="6n \\+ 2"):
            CifarResNet(depth)


def test_cifar_block_equals_its_formula():
    torch.manual_seed(0)
    block = CifarResNet(8).layer2[0].eval()
    x = torch.randn(2, 16, 6, 6)
    scale = (1 + 1e-5) ** -0.5  # a fresh batch norm in eval mode
    inner = (F.conv2d(x, block.conv1.weight, stride=2, padding=1) * scale).relu()
    shortcut = torch.zeros(2, 32, 3, 3)
    shortcut[:, 8:24] = x[:, :, [0, 2, 4]][..., [0, 2, 4]]
    expected = (F.conv2d(inner, block.conv2.weight, padding=1) * scale + shortcut).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("name", "uses"), [("lenet5", 4), ("vgg11", 8), ("resnet20", 19)])
def test_each_activation_use_is_its_own_module(name, uses):
    calls = relu_calls(build(name, in_channels=3), torch.randn(2, 3, 32, 32))
    assert len(calls) == uses
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_replacing_every_relu_module_leaves_no_activation(name):
    """Without its ReLU modules an eval-mode network is linear, up to the max of its pools."""
    model = build(name, in_channels=3)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.ReLU):
                setattr(parent, child, nn.Identity())
            if isinstance(module, nn.MaxPool2d):
                setattr(parent, child, nn.AvgPool2d(module.kernel_size))
    model = model.double().eval()
    x, y = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    zero = model(torch.zeros_like(x))
    torch.testing.assert_close(model(x + y) + zero, model(x) + model(y))


@pytest.mark.parametrize("name", NAMES)
def test_norms_without_affine_part_have_no_parameters(name):
    model = build(name, norm_affine=False)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert norms
    assert all(not list(norm.parameters()) for norm in norms)


def test_convolutions_start_from_he_fan_out():
    torch.manual_seed(0)
    weight = CifarResNet(20).layer3[2].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    stem = Vgg11(in_channels=3).conv1
    assert stem.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert not stem.bias.any()


@pytest.mark.parametrize("name", mostly_slow(NAMES, day=(0,)))
def test_compiles_as_one_graph_in_train_mode(name):
    torch.manual_seed(0)
    model = build(name, image_size=8, in_channels=1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(4, 1, 8, 8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    compiled(images).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.load_state_dict(state)
    model.zero_grad()
    model(images).square().sum().backward()
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
