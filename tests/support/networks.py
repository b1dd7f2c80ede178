"""Networks of every kind that a packed file must hold, prepared and moved off their start."""

import copy

import torch
from torch import nn

from qat.export.packed.convert import convert
from qat.export.packed.file import to_bytes
from qat.models.resnet import torchvision_resnet
from qat.models.small import CifarResNet, LeNet5
from qat.quantize.prepare import prepare
from qat.spec.header import Architecture, Header, Preprocessing
from qat.spec.quant import ActivationSpec, EndsSpec, Override, QuantSpec, RuleSpec, WeightSpec

IN_GRAPH = RuleSpec(name="float_only")

FULL = {
    "architecture": Architecture(family="small", options={"name": "lenet5"}),
    "preprocessing": Preprocessing(
        channels=3, size=8, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 1 / 3), classes=tuple("abcdé")
    ),
    "data": "digits",
    "accuracy": {"test": 0.1 + 0.2},
    "versions": {"torch": "2.15"},
    "source_sha256": "f" * 64,
    "promised_bytes": 1234,
}


class Tied(nn.Module):
    """Two convolutions that share one weight, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.b.weight = self.a.weight
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        for layer, relu in zip((self.stem, self.a, self.b), self.relus, strict=True):
            x = relu(layer(x))
        return self.head(x.mean(dim=(2, 3)))


def tiny():
    """The smallest network with everything: convolution, norm, activation, linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def resnet20():
    return CifarResNet(20, num_classes=5)


def resnet18():
    return torchvision_resnet("resnet18", num_classes=5, in_channels=3, image_size=8)


def lenet():
    return LeNet5(num_classes=5, in_channels=3, image_size=8)


def weights(bits, **options):
    """Options of networks whose activations have four bits."""
    method = options.get("method", "update")
    rule = RuleSpec() if method == "update" else IN_GRAPH
    return QuantSpec(rule=rule, weight=WeightSpec(bits=bits, **options))


CASES = {
    "binary": (lenet, weights(1)),
    "ternary": (resnet20, weights(2)),
    "uniform": (lenet, weights(3, granularity="channel")),
    "power-of-two": (resnet20, weights(4, grid="power_of_two")),
    "channel": (resnet20, weights(4, granularity="channel")),
    "ends-float": (
        resnet20,
        QuantSpec(weight=WeightSpec(bits=2), ends=EndsSpec(first="float", last="float")),
    ),
    "overrides": (
        resnet20,
        QuantSpec(
            weight=WeightSpec(bits=1),
            overrides=(
                Override(match="layer1.*", weight={"bits": 5, "granularity": "channel"}),
                Override(match="layer2.0.*", weight={"method": "lsq", "bits": 3}),
                Override(match="fc", weight={"bits": 32}),
            ),
        ),
    ),
    "tied": (Tied, weights(3)),
    "input-bits": (lenet, QuantSpec(weight=WeightSpec(bits=2), input_bits=8)),
    "lsq": (lenet, weights(3, method="lsq", granularity="channel")),
    "dorefa": (resnet20, weights(4, method="dorefa")),
    "reste": (lenet, weights(1, method="reste")),
    "biper": (lenet, weights(1, method="biper", granularity="channel")),
    "pact": (
        resnet20,
        QuantSpec(weight=WeightSpec(bits=2), activation=ActivationSpec(kind="pact", bits=3)),
    ),
}
# eleven million weights: at night
LARGE = {"torchvision": (resnet18, weights(4, granularity="channel"))}


def images(count=4, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


_PREPARED = {}  # what tests ask for again and again; of each they get a copy


def prepared(make, spec, seed=0):
    """A prepared network in eval mode, always the same for the same seed."""
    key = (make, repr(spec), seed)
    if key not in _PREPARED:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _PREPARED[key] = prepare(make(), spec, example=images()).eval()
    return copy.deepcopy(_PREPARED[key])


@torch.no_grad()
def moved(net, seed=1):
    """Every parameter and statistic a little off its start, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    for value in {id(v): v for v in net.state_dict(keep_vars=True).values()}.values():
        if value.is_floating_point():
            value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
            value.add_(0.003)
    return net


def packed(make, spec, **options):
    converted = convert(moved(prepared(make, spec)), spec)
    return converted, to_bytes(converted, Header(quant=spec, **options))
