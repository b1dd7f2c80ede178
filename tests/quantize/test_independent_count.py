"""The audit's shares against a count of the values that really enter the products."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from qat.quantize.audit import audit
from qat.quantize.plan import project_weights
from qat.quantize.prepare import prepare
from qat.spec.quant import EndsSpec, QuantSpec

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "operand_values", ROOT / "scripts" / "operand_values.py"
)
operand_values = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(operand_values)

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Centred(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return self._conv_forward(x, w.reshape_as(self.weight), self.bias)


class Mixture(nn.Module):
    """Each image has a convolution of its own, mixed of three."""

    def __init__(self):
        super().__init__()
        self.route, self.experts = nn.Linear(8, 3), nn.Parameter(torch.randn(3, 8 * 8 * 9))

    def forward(self, x):
        n, c, h, w = x.shape
        mixed = self.route(x.mean((2, 3))).softmax(1) @ self.experts
        x = x.reshape(1, n * c, h, w)
        return F.conv2d(x, mixed.view(n * 8, 8, 3, 3), padding=1, groups=n).view(n, 8, h, w)


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return F.conv2d(x, (self.a @ self.b)[..., None, None])


class Tokens(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        tokens = self.layer(x.flatten(2).transpose(1, 2))
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)


class ByParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return torch.einsum("bnc,cd->bnd", x, self.p) @ self.q


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.one(F.relu(self.two(F.relu(self.one(x)))))


def pruned():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


MIDDLES = {
    "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 2, 2),
    "gelu": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 1)),
    "centred": lambda: Centred(8, 8, 3),
    "standardised": lambda: Standardised(8, 8, 3),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3)),
    "pruned": pruned,
    "mixture": Mixture,
    "low rank": LowRank,
    "linear": lambda: Tokens(nn.Linear(8, 8)),
    "attention": lambda: Tokens(SelfAttention()),
    "encoder": lambda: Tokens(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "lstm": lambda: Tokens(nn.LSTM(8, 8, batch_first=True)),
    "two layers, both ways": lambda: Tokens(nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True)),
    "gru": lambda: Tokens(nn.GRU(8, 8, batch_first=True)),
    "rnn": lambda: Tokens(nn.RNN(8, 8, batch_first=True)),
    "by parameter": lambda: Tokens(ByParameter()),
    "bilinear": lambda: Tokens(_Twice(nn.Bilinear(8, 8, 8))),
    "shared": Shared,
}


class _Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


def network(middle):
    """A convolution and a ReLU, `middle`, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), MIDDLES[middle](), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip


# their convolutions multiply by what other products give: no weight, but counted as one
GENERATED = ("mixture", "low rank")
# a recurrent layer's first state is all zeros, which are few values, and the count says so
RECURRENT = ("lstm", "two layers, both ways", "gru", "rnn")


@pytest.mark.filterwarnings("ignore:only .* of the", "ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("ends", ["quantized", "float"])
@pytest.mark.product
def test_the_shares_are_those_of_the_values(middle, ends):
    net, spec = network(middle), QuantSpec(ends=EndsSpec(first=ends, last=ends))
    net(IMAGES)
    prepare(net, spec, example=IMAGES).eval()
    project_weights(net, spec)
    found = audit(net, spec, IMAGES)
    # so many that no tensor holds few values just because it is small
    many = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    count = operand_values.count_values(net, many)
    if middle == "bilinear":  # an operator of its own, which the count does not know
        assert found.macs > count.macs / len(many)
        return
    # what does not depend on the images is done once, however many there are
    assert found.macs == pytest.approx(count.macs / len(many), rel=0.01)
    share = count.parameter_share if middle in GENERATED else count.weight_share
    assert found.quantized_share == pytest.approx(share, abs=1e-9)
    if middle in RECURRENT:
        assert found.product_share <= count.product_share
    else:
        once = 0.01 if "spectral" in middle else 1e-4
        assert found.product_share == pytest.approx(count.product_share, abs=once)


FLOPS = ("conv", "grouped", "transposed", "attention", "encoder", "by parameter")


@pytest.mark.parametrize("middle", FLOPS)
def test_multiplications_are_those_of_torchs_own_counter(middle):
    net = network(middle).eval()
    net(IMAGES)
    spec = QuantSpec()
    prepare(net, spec, example=IMAGES)
    project_weights(net, spec)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        net(IMAGES)
    torch.backends.mha.set_fastpath_enabled(fused)
    assert 2 * len(IMAGES) * audit(net, spec, IMAGES).macs == flops.get_total_flops()
