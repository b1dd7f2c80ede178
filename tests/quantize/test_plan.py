"""What becomes of each layer: defaults, ends, overrides."""

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.nn.weight import WeightQuantizer
from qat.quantize.plan import resolve, weight_projections, weight_quantizer
from qat.quantize.prepare import prepare
from qat.spec.quant import EndsSpec, Override, QuantSpec, WeightSpec


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def bits(spec, net=None):
    return {name: plan.spec.bits for name, plan in resolve(net or network(), spec).weights.items()}


def test_all_layers_by_default():
    assert bits(QuantSpec()) == {"0": 1, "2.0": 1, "2.3": 1, "5": 1}


@pytest.mark.parametrize("first", ["quantized", "float"])
@pytest.mark.parametrize("last", ["quantized", "float"])
def test_ends(first, last):
    plans = resolve(network(), QuantSpec(ends=EndsSpec(first=first, last=last))).weights
    assert plans["0"].spec.bits == (32 if first == "float" else 1)
    assert plans["5"].spec.bits == (32 if last == "float" else 1)
    assert plans["0"].reason == ("ends.first=float" if first == "float" else "")
    assert plans["5"].reason == ("ends.last=float" if last == "float" else "")
    assert plans["2.0"].spec.bits == plans["2.3"].spec.bits == 1


@pytest.mark.parametrize("end", ["first", "last"])
def test_the_only_layer_is_both_ends(end):
    net = nn.Sequential(nn.Linear(3, 2))
    assert bits(QuantSpec(ends=EndsSpec(**{end: "float"})), net) == {"0": 32}
    assert bits(QuantSpec(), net) == {"0": 1}


def test_the_last_matching_override_wins():
    overrides = (
        Override(match="2.*", weight={"bits": 4}),
        Override(match="*.3", weight={"bits": 8}),
        Override(match="2.?", activation={"bits": 2}),
    )
    spec = QuantSpec(overrides=overrides)
    assert bits(spec) == {"0": 1, "2.0": 4, "2.3": 8, "5": 1}
    swapped = QuantSpec(overrides=overrides[1::-1])
    assert bits(swapped) == {"0": 1, "2.0": 4, "2.3": 4, "5": 1}
    # an override that says nothing about a part leaves it to the earlier ones
    assert resolve(network(), spec).activation("2.2").bits == 2
    assert resolve(network(), spec).activation("1").bits == 4


def test_an_override_is_stronger_than_the_ends_policy():
    spec = QuantSpec(
        ends=EndsSpec(first="float", last="float"),
        overrides=(Override(match="0", weight={"bits": 8}),),
    )
    assert bits(spec) == {"0": 8, "2.0": 1, "2.3": 1, "5": 32}


def test_an_override_to_float_names_itself():
    spec = QuantSpec(overrides=(Override(match="2.0", weight={"bits": 32}),))
    plans = resolve(network(), spec).weights
    assert plans["2.0"].reason == "override match=2.0"
    assert not plans["2.0"].spec.is_quantized


def test_override_merges_with_the_defaults():
    weight = WeightSpec(bits=2, grid="ternary_threshold", granularity="channel")
    overrides = (
        Override(match="0", weight={"bits": 4}),
        Override(match="5", weight={"granularity": "tensor"}),
    )
    plans = resolve(network(), QuantSpec(weight=weight, overrides=overrides)).weights
    assert weight_quantizer(plans["0"].spec) == WeightQuantizer(4, "channel", "uniform")
    assert weight_quantizer(plans["5"].spec) == WeightQuantizer(2, "tensor", "ternary_threshold")
    assert weight_quantizer(plans["2.0"].spec) == WeightQuantizer(2, "channel", "ternary_threshold")


@pytest.mark.parametrize("match", ["layer9", "2", "2.1", "", "0.weight"])
def test_a_pattern_that_matches_nothing_is_an_error(match):
    spec = QuantSpec(overrides=(Override(match=match, weight={"bits": 4}),))
    for fun in (resolve, weight_projections):
        with pytest.raises(
            SpecError, match=r"matches no conv or linear layer; names look like 0, 2\.0"
        ):
            fun(network(), spec)


def test_projections_are_those_of_the_parameters():
    net = network()
    spec = QuantSpec(ends=EndsSpec(last="float"))
    projections = weight_projections(net, spec)
    assert list(projections) == [net[0].weight, net[2][0].weight, net[2][3].weight]
    assert set(projections.values()) == {WeightQuantizer(1, grid="binary")}
    w = net[0].weight.detach()
    assert torch.equal(
        projections[net[0].weight](w), torch.where(w >= 0, 1.0, -1.0) * w.abs().mean()
    )


def test_tied_weights_follow_the_first_layer():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    both = weight_projections(net, QuantSpec())
    assert list(both) == [net[0].weight]
    first_float = QuantSpec(ends=EndsSpec(first="float"))
    assert weight_projections(net, first_float) == {}


def test_what_a_layer_multiplies_by_decides_and_not_its_name():
    class Centred(nn.Conv2d):
        def forward(self, input):
            return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)

    class StdConv2d(nn.Conv2d):
        """Standardises nothing."""

    net = nn.Sequential(nn.Conv2d(1, 1, 1), Centred(1, 1, 1), StdConv2d(1, 1, 1))
    spec = QuantSpec(overrides=(Override(match="1", weight={"bits": 4}),))
    prepare(net, spec, example=torch.randn(2, 1, 4, 4))
    plans = resolve(net, spec).weights
    assert (plans["0"].spec.bits, plans["2"].spec.bits) == (1, 1)
    # centred, then quantized
    assert (plans["1"].spec.bits, plans["1"].is_made) == (4, True)
    assert not plans["0"].is_made
    assert not plans["2"].is_made


def test_without_layers():
    assert resolve(nn.Sequential(nn.ReLU()), QuantSpec()).weights == {}


def test_preparing_changes_no_plan_and_a_plan_is_as_good_as_its_options():
    spec = QuantSpec(
        weight=WeightSpec(bits=4, method="lsq", granularity="tensor"),
        overrides=(Override(match="2.0", weight={"method": "update"}),),
    )
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    plan = resolve(one, spec)
    assert resolve(one, plan) is plan
    image = torch.randn(2, 1, 4, 4)
    prepare(one, plan, example=image)
    prepare(other, spec, example=image)
    assert resolve(one, spec) == plan
    assert str(one) == str(other)
    assert torch.equal(one(image), other(image))
    assert len(weight_projections(one, plan)) == len(weight_projections(other, spec)) == 1


def test_a_shared_weight_is_its_first_layers():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    overrides = (Override(match="2", weight={"bits": 4}),)
    plan = resolve(net, QuantSpec(overrides=overrides))
    assert {name: layer.is_shared for name, layer in plan.weights.items()} == {
        "0": False,
        "2": True,
    }
    assert {name: options.bits for name, options in plan.quantized.items()} == {"0": 1}
