"""Cost of known networks: counted by hand, by torch's own counter, and by the audit."""

from collections import Counter

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qat.quantize.audit import audit
from qat.quantize.plan import project_weights
from qat.quantize.prepare import prepare
from qat.spec.quant import EndsSpec, QuantSpec

# Multiply-accumulates per image by the bits of their operands, with 1-bit weights, 4-bit inputs and
# float weights in the first and the last layer.
FLOAT, INNER = (32, 32), (1, 4)
LAST = (32, 4)  # the input of the last layer has a quantizer
POOLED = (1, 32)  # an average of levels is no level, and gets no quantizer


def resnet18():
    """arXiv:1512.03385, table 1; stages of two blocks, the first of which halves the image."""
    count = Counter({FLOAT: 112**2 * 64 * 3 * 7**2 + 512 * 1000})
    count[INNER] += 4 * 56**2 * 64 * 64 * 9
    for c, size in ((128, 28), (256, 14), (512, 7)):
        count[INNER] += size**2 * (c // 2 * c * 9 + c * c * 9 + c // 2 * c + 2 * c * c * 9)
    return count


# arXiv:1905.02244, table 1: kernel, expansion, outputs, with squeeze and excite, stride
MOBILENET = (
    (3, 64, 24, False, 2), (3, 72, 24, False, 1),
    (5, 72, 40, True, 2), (5, 120, 40, True, 1), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
    (3, 480, 112, True, 1), (3, 672, 112, True, 1),
    (5, 672, 160, True, 2), (5, 960, 160, True, 1), (5, 960, 160, True, 1),
)  # fmt: skip
SQUEEZED = {72: 24, 120: 32, 480: 120, 672: 168, 960: 240}  # a quarter, to a multiple of 8


def mobilenetv3():
    size = 112
    count = Counter({FLOAT: size**2 * 16 * 3 * 9, LAST: 1280 * 1000})
    count[INNER] = size**2 * (16 * 9 + 16 * 16)  # the first block does not expand
    before = 16
    for kernel, wide, out, squeezes, stride in MOBILENET:
        count[INNER] += size**2 * before * wide
        size //= stride
        count[INNER] += size**2 * (wide * kernel**2 + wide * out)
        if squeezes:
            # behind a ReLU levels are averaged, behind a hard swish, from 80 channels on, floats
            count[POOLED if before <= 40 else INNER] += wide * SQUEEZED[wide]
            count[INNER] += SQUEEZED[wide] * wide
        before = out
    count[INNER] += size**2 * 160 * 960 + 960 * 1280
    return count


def vit_tiny():
    """arXiv:2010.11929, width 192, twelve blocks of three heads; a class token."""
    c, tokens = 192, 14**2 + 1
    return Counter(
        {
            FLOAT: 14**2 * (16 * 16 * 3) * c + 12 * 2 * tokens**2 * c,
            LAST: c * 1000,
            INNER: 12 * tokens * (3 * c * c + c * c + 2 * c * 4 * c),
        }
    )


def swin_tiny():
    """arXiv:2103.14030, section 3.2: windows of 7 x 7 tokens, and equation 2."""
    count = Counter({FLOAT: 56**2 * (4 * 4 * 3) * 96, LAST: 768 * 1000})
    for stage, depth in enumerate((2, 2, 6, 2)):
        c, tokens = 96 * 2**stage, (56 // 2**stage) ** 2
        count[INNER] += depth * 12 * tokens * c * c
        count[FLOAT] += depth * 2 * 7**2 * tokens * c
        if stage:  # four neighbours of c / 2 channels become one token of c
            count[INNER] += tokens * (4 * c // 2) * c
    return count


def convnext_atto():
    """arXiv:2201.03545, figure 4, with the widths of timm's smallest."""
    count = Counter({FLOAT: 56**2 * (4 * 4 * 3) * 40, LAST: 320 * 1000})
    for stage, depth in enumerate((2, 2, 6, 2)):
        c, places = 40 * 2**stage, (56 // 2**stage) ** 2
        count[INNER] += depth * places * (c * 7**2 + 2 * c * 4 * c)
        if stage:
            count[INNER] += places * (2 * 2 * c // 2) * c
    return count


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(), resnet18),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_large_100"), mobilenetv3),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224"), vit_tiny),
    "swin_tiny": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), swin_tiny),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), convnext_atto),
}


class Sequences(nn.Module):
    """An LSTM over the rows of an image, its last state into a linear layer."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = nn.LSTM(24, 16, batch_first=True, **options)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        out, _ = self.lstm(x.transpose(1, 2).flatten(2))  # (N, 8 rows, 3 * 8)
        return self.head(self.norm(out[:, -1, :16]))


class Decoder(nn.Module):
    """An image is halved, doubled again by a transposed convolution, and classified."""

    def __init__(self, **options):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 2, 2)
        self.up = nn.ConvTranspose2d(8, 12, kernel_size=3, stride=2, **options)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.up(torch.relu(self.down(x))))).mean((2, 3))


def flops_of_torch(net, images):
    """Floating point operations of one pass, by torch's counter, which knows no fused cells."""
    with (
        FlopCounterMode(display=False) as flops,
        torch.no_grad(),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        net(images)
    return flops.get_total_flops()


def audited(net, images):
    spec = QuantSpec(ends=EndsSpec(first="float", last="float"))
    prepare(net, spec, example=images)
    project_weights(net, spec)
    return audit(net, spec, images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", NETWORKS)
def test_cost_of_a_known_network(name):
    make, by_hand = NETWORKS[name]
    torch.manual_seed(0)
    net, count, images = make().eval(), by_hand(), torch.randn(1, 3, 224, 224)
    flops = flops_of_torch(net, images)
    found = audited(net, images)
    assert flops == 2 * count.total()
    assert found.macs == count.total()
    assert found.bops == sum(macs * one * two for (one, two), macs in count.items())
    assert found.ace == sum(m * min(one, 16) * min(two, 16) for (one, two), m in count.items())
    assert found.product_share == count[INNER] / count.total()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(
    ("options", "first", "states"),
    [
        # of each of 8 steps four gates of 16: from 24 inputs, and from 16 states
        ({}, 8 * 4 * 16 * 24, 8 * 4 * 16 * 16),
        ({"bias": False}, 8 * 4 * 16 * 24, 8 * 4 * 16 * 16),
        ({"num_layers": 2}, 8 * 4 * 16 * 24, 3 * 8 * 4 * 16 * 16),
        ({"bidirectional": True}, 2 * 8 * 4 * 16 * 24, 2 * 8 * 4 * 16 * 16),
    ],
)
def test_cost_of_an_lstm(options, first, states):
    net, images = Sequences(**options).eval(), torch.randn(3, 3, 8, 8)
    flops = flops_of_torch(net, images)
    found = audited(net, images)
    last = 16 * 5
    assert flops == 3 * 2 * (first + states + last)
    assert found.macs == first + states + last
    # states stay float, and what multiplies the image does
    assert found.bops == 32 * 32 * first + 1 * 32 * states + 32 * 4 * last


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("options", [{}, {"padding": 1, "output_padding": 1}, {"groups": 4}])
def test_cost_of_a_transposed_convolution(options):
    net, images = Decoder(**options).eval(), torch.randn(3, 3, 8, 8)
    flops = flops_of_torch(net, images)
    found = audited(net, images)
    out = {"padding": 8**2}.get(next(iter(options), ""), 9**2)
    # each of its 4 x 4 inputs is multiplied by the whole kernel
    up = 4**2 * 8 * 12 * 3**2 // options.get("groups", 1)
    first, last = 4**2 * 8 * 3 * 2**2, out * 12 * 5
    assert flops == 3 * 2 * (first + up + last)
    assert found.macs == first + up + last
    assert found.bops == 32 * 32 * first + 1 * 4 * up + 32 * 4 * last
