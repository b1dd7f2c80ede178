"""Weights that a forward makes of parameters: quantized after they are made, everywhere alike."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from qat import IntegerNetwork, QuantOptimizer, bcgd, network_graph, parameter_groups
from qat.errors import CheckpointError, SpecError
from qat.export.packed.convert import convert, latent_state
from qat.export.packed.network import load_packed, save_packed
from qat.nn.projected_weight import ProjectedWeight
from qat.nn.weight import WeightQuantizer
from qat.quantize.audit import audit
from qat.quantize.calibrate import start_steps
from qat.quantize.loading import load_weights
from qat.quantize.plan import project_weights, resolve, weight_projections
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.header import Header
from qat.spec.quant import EndsSpec, Override, QuantSpec, RuleSpec, WeightSpec

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONV = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1}


class Standardised(nn.Conv2d):
    """As in BiT: each output channel has mean 0 and deviation 1, times a gain."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gain = nn.Parameter(torch.full((self.out_channels,), 0.3))

    def standardised(self):
        w = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(w, None, None, weight=self.gain, training=True, eps=1e-6)
        return w.reshape_as(self.weight)

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias, padding=self.padding)


class Centred(nn.Linear):
    def forward(self, input):
        return F.linear(input, bias=self.bias, weight=self.weight - self.weight.mean(1, True))


def masked():
    layer = nn.Conv2d(**CONV)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


LAYERS = {
    "standardised": lambda: Standardised(**CONV),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(**CONV)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(**CONV)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(**CONV)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(**CONV)),
    "masked": masked,
    "centred": lambda: nn.Sequential(nn.Flatten(), Centred(256, 256), nn.Unflatten(1, (4, 8, 8))),
}
BITS = {"masked": 2}  # a grid with 0


def network(name):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), LAYERS[name](), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )


def prepared(name, **weight):
    spec = QuantSpec(weight=WeightSpec(**{"bits": BITS.get(name, 1), **weight}))
    return prepare(network(name), spec, example=IMAGES), spec


def layer_of(name):
    return "2.1" if name == "centred" else "2"


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_part_says_the_same(name, granularity, tmp_path):
    net, spec = prepared(name, granularity=granularity)
    layer = layer_of(name)
    plan = resolve(net, spec)
    assert plan.weights[layer].is_made
    assert list(plan.made) == [layer]
    # the update rule has the other two; what the layer's weight is made of is the base optimizer's
    assert set(plan.quantized) == {"0", "5"}
    assert len(weight_projections(net, spec)) == 2
    project_weights(net, spec)
    found = audit(net.eval(), spec, IMAGES)
    row = next(row for row in found.layers if row.name == layer)
    assert (row.weight_bits, row.reason) == (spec.weight.bits, "")
    assert 2 <= row.levels <= 3
    assert found.quantized_share == 1
    converted = convert(net, spec)
    assert set(converted.weights) == {"0", layer, "5"}
    path = tmp_path / "net.safetensors"
    save_packed(path, converted, Header(quant=spec))
    opened = load_packed(path, model=network(name)).net
    with torch.no_grad():
        assert torch.equal(opened(IMAGES), net(IMAGES))
        assert torch.equal(opened(2 * IMAGES), net(2 * IMAGES))
    again = audit(opened, spec, IMAGES)
    assert (again.quantized_share, again.bytes) == (1, found.bytes)
    assert [r.weight_bits for r in again.layers] == [r.weight_bits for r in found.layers]
    # the file holds no float copy of what the weight is made of
    kept = {key for key, parameter in net.named_parameters() if parameter.ndim > 1}
    assert not kept & set(converted.residue)


def test_standardised_then_quantized_is_what_is_multiplied():
    net, _ = prepared("standardised", granularity="channel")
    layer = net[2]
    quantized = WeightQuantizer(1, "channel")(layer.standardised())
    expected = F.conv2d(IMAGES[:, :1].repeat(1, 4, 1, 1), quantized, layer.bias, padding=1)
    assert torch.equal(layer(IMAGES[:, :1].repeat(1, 4, 1, 1)), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_disabled_it_is_the_float_network(name):
    net, _ = prepared(name)
    enable_quantizers(net, False)
    float_net = network(name)
    for twin in (net, float_net):
        twin.eval()
    assert torch.equal(net(IMAGES), float_net(IMAGES))
    assert len(load_weights(net, float_net.state_dict())) == 2  # the steps of two ReLUs


def test_the_gradient_is_that_of_the_quantized_weight_passed_on():
    w = torch.randn(4, 3, requires_grad=True, generator=torch.Generator().manual_seed(3))
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    quantizer = ProjectedWeight(WeightQuantizer(1))
    out = quantizer(w)
    assert torch.equal(out, WeightQuantizer(1)(w))
    assert torch.equal(torch.autograd.grad(out, w, gradient)[0], gradient)
    quantizer.enabled = False
    assert quantizer(w) is w


@pytest.mark.parametrize("name", ["standardised", "weight norm", "spectral norm"])
def test_two_steps_move_what_the_weight_is_made_of(name):
    net, spec = prepared(name)
    start_steps(net, spec, [IMAGES])
    groups = parameter_groups(net.named_parameters(), lr=0.1, weight_decay=None, step_rate=0.01)
    optimizer = QuantOptimizer(
        torch.optim.SGD(groups, lr=0.1), weight_projections(net, spec), bcgd()
    )
    before = {n: p.detach().clone() for n, p in net[2].named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(IMAGES), torch.tensor([1, 2])).backward()
        optimizer.step()
    moved = [n for n, p in net[2].named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)


def test_in_graph_methods_stand_there_too():
    spec = QuantSpec(weight=WeightSpec(bits=4, method="lsq"), rule=RuleSpec(name="float_only"))
    net = prepare(network("standardised"), spec, example=IMAGES)
    quantizer = net[2].call_sites.conv2d_0_1
    mean = net[2].standardised().abs().mean()
    assert quantizer.scale.item() == pytest.approx(2 * float(mean) / 7**0.5)
    with torch.no_grad():
        net[2].gain.mul_(3)
    start_steps(net, spec, [IMAGES])
    assert quantizer.scale.item() == pytest.approx(6 * float(mean) / 7**0.5, rel=1e-4)
    net(IMAGES).sum().backward()
    assert quantizer.scale.grad is not None
    assert net[2].gain.grad is not None
    assert audit(net.eval(), spec, IMAGES).quantized_share == 1


def test_a_mask_on_a_grid_without_zero_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), LAYERS["masked"]())
    with pytest.warns(UserWarning, match=r"largest that stays float is 2 \(mul makes zeros"):
        prepare(net, QuantSpec(), example=IMAGES)
    plan = resolve(net, QuantSpec()).weights["2"]
    assert plan.reason == "mul makes zeros, which its grid has not"
    assert not plan.spec.is_quantized


def test_ends_and_overrides_speak_of_made_weights():
    torch.manual_seed(0)
    first, last = Standardised(**{**CONV, "in_channels": 3}), Standardised(**CONV)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(**CONV), nn.ReLU(), last)
    override = Override(match="4", weight={"bits": 8})
    spec = QuantSpec(ends=EndsSpec(first="float", last="float"), overrides=(override,))
    prepare(net, spec, example=IMAGES)
    plans = resolve(net, spec).weights
    assert {name: plan.spec.bits for name, plan in plans.items()} == {"0": 32, "2": 1, "4": 8}
    assert plans["0"].reason == "ends.first=float"
    project_weights(net, spec)
    rows = {row.name: row for row in audit(net, spec, IMAGES).layers}
    assert (rows["0"].weight_bits, rows["0"].weights) == (32, 4 * 3 * 9)


def test_such_networks_copy_and_pickle():
    net, _ = prepared("standardised")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(IMAGES), net(IMAGES))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), net(IMAGES))


def test_training_does_not_go_on_from_what_a_file_does_not_hold(tmp_path):
    net, spec = prepared("weight norm")
    converted = convert(net, spec)
    with pytest.raises(CheckpointError, match="weight of 2 is stored as its forward has made it"):
        latent_state(prepared("weight norm")[0], converted)
    with pytest.raises(SpecError, match="cannot be exported"):
        IntegerNetwork(network_graph(net, converted, IMAGES))


@pytest.mark.filterwarnings("ignore:only .* of the")
def test_a_parameter_behind_two_weights_stays_float():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4, 4, 1, 1))

        def forward(self, x):
            x = F.conv2d(F.relu(self.a(x)), self.w - 1)
            return F.conv2d(F.relu(x), self.w + 1)

    net = Two()
    prepare(net, QuantSpec(), example=IMAGES)
    plan = resolve(net, QuantSpec()).weights["w"]
    assert not plan.is_made
    assert plan.reason.endswith("makes the weight of it")


def test_codes_of_a_projected_weight_end_where_its_grid_does():
    net, spec = prepared("weight norm", bits=3, grid="power_of_two")
    codes = convert(net.eval(), spec).weights["2"]
    assert codes.largest_code == len(codes.quantizer.levels) // 2 == 2
    assert int(codes.codes.abs().max()) <= 2
