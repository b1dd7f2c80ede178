"""Files of networks of the user's own, opened as the docstrings say: by the network, no more."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from qat import (
    ActivationSpec,
    Header,
    QuantSpec,
    RuleSpec,
    WeightSpec,
    convert,
    load_packed,
    load_weights,
    prepare,
    save_packed,
)
from qat.errors import CheckpointError
from qat.export.packed.file import to_bytes
from qat.quantize.plan import project_weights
from support.networks import IN_GRAPH, images, moved, tiny


class Functional(nn.Module):
    """ReLUs as functions, so that layers get quantizers on their inputs."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.f = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.f(F.relu(self.c2(F.relu(self.c1(x)))).mean((2, 3)))


class Tokens(nn.Module):
    """Layers of vectors within a map."""

    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.b(F.gelu(self.a(self.norm(x)))).mean(1)


def vectors():
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


SIGN = {"kind": "sign", "bits": 1}
OWN = {
    "functional": (Functional, QuantSpec(), (3, 8, 8)),
    "functional-sign": (Functional, QuantSpec(activation=ActivationSpec(**SIGN)), (3, 8, 8)),
    "functional-lsq": (
        Functional,
        QuantSpec(
            rule=IN_GRAPH,
            weight=WeightSpec(method="lsq", bits=3),
            activation=ActivationSpec(kind="lsq"),
        ),
        (3, 8, 8),
    ),
    "image": (tiny, QuantSpec(input_bits=8), (3, 8, 8)),
    "shift": (tiny, QuantSpec(activation=ActivationSpec(**SIGN, shift="channel")), (3, 8, 8)),
    "vectors": (vectors, QuantSpec(), (6,)),
    "tokens": (Tokens, QuantSpec(), (7, 6)),
    "weights-only": (tiny, QuantSpec(activation=ActivationSpec(bits=32)), (3, 8, 8)),
    # the entries of this one's modules have versions
    "mnasnet0_5": (
        lambda: torchvision.models.mnasnet0_5(num_classes=5),
        QuantSpec(),
        (3, 32, 32),
    ),
}


@pytest.fixture(params=OWN)
def own(request, tmp_path):
    """How it is made, its options, the trained network, a file of it, and images."""
    make, spec, shape = OWN[request.param]
    torch.manual_seed(0)
    example = torch.randn(4, *shape)
    net = moved(prepare(make(), spec, example=example).eval())
    path = tmp_path / "net.safetensors"
    save_packed(path, convert(net, spec), Header(quant=spec))
    return make, spec, net, path, example


@torch.no_grad()
def test_a_float_network_is_all_that_it_needs(own):
    make, _, _, path, example = own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = load_packed(path, model=make())
        again = load_packed(path, model=make())
    assert opened.header.shape == tuple(example.shape[1:])
    assert torch.equal(opened.net(example), again.net(example))
    assert to_bytes(opened.converted, opened.header) == path.read_bytes()


@torch.no_grad()
def test_a_prepared_network_will_do(own):
    make, spec, net, path, example = own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = load_packed(path, model=make()).net
        prepared = load_packed(path, model=prepare(make(), spec, example=example)).net
    project_weights(net, spec)
    wanted = net(example)
    assert torch.equal(fresh(example), wanted)
    assert torch.equal(prepared(example), wanted)
    assert torch.equal(load_packed(path, model=copy.deepcopy(net)).net(example), wanted)
    assert torch.equal(net(example), wanted)  # a copy is taken apart, not the original
    assert torch.equal(load_packed(path, model=net).net(example), wanted)


def test_weights_are_loaded_with_their_versions(own):
    make, spec, net, _, example = own
    other = prepare(make(), spec, example=example)
    assert load_weights(other, net.state_dict()) == []
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_a_network_prepared_without_an_example(tmp_path):
    spec, path = QuantSpec(), tmp_path / "net.safetensors"
    with pytest.warns(UserWarning, match="did not check"):
        net = prepare(tiny(), spec)
    save_packed(path, convert(net, spec), Header(quant=spec))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = load_packed(path, model=tiny())
    assert opened.header.shape is None


def test_an_older_file_opens_with_a_prepared_network_and_says_so(tmp_path):
    spec, path = QuantSpec(), tmp_path / "net.safetensors"
    net = prepare(Functional(), spec, example=images()).eval()
    converted = convert(net, spec)
    header = Header(quant=spec, preparation=converted.preparation)
    path.write_bytes(to_bytes(converted, header))
    with pytest.raises(CheckpointError, match=r"prepared as version 2 .*give a model that prepa"):
        load_packed(path, model=Functional())
    load_packed(path, model=prepare(Functional(), spec, example=images()))


def test_the_shape_that_a_header_tells_is_left(tmp_path):
    spec, path = QuantSpec(rule=RuleSpec(rho=0.5)), tmp_path / "net.safetensors"
    net = prepare(Functional(), spec, example=images()).eval()
    save_packed(path, convert(net, spec), Header(quant=spec, example=(3, 9, 9)))
    assert load_packed(path, model=Functional()).header.example == (3, 9, 9)
