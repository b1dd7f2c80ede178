"""prepare on small networks of every kind."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.nn.activation import ActivationQuantizer
from qat.quantize.activations import activation_quantizers
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.quant import ActivationSpec, Override, QuantSpec, RuleSpec, WeightSpec

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
WEIGHTS_ONLY = QuantSpec(activation=ActivationSpec(bits=32))


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Vit(nn.Module):
    """A patch embedding and one block with GELU and LayerNorm, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        x = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return self.head(x.mean(dim=1))


class Shared(nn.Module):
    """One ReLU object for two uses, as in torchvision's blocks."""

    def __init__(self, uses):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU()
        self.uses = uses

    def forward(self, x):
        x = self.relu(self.a(x))
        return self.relu(self.b(x)) if self.uses == 2 else self.b(x)


def test_relus_become_staircases_and_nothing_else_changes():
    net = convnet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert prepare(net, QuantSpec(), example=IMAGES) is net
    assert list(activation_quantizers(net)) == ["2", "4"]
    assert all(q.bits == 4 and not q.signed for q in activation_quantizers(net).values())
    assert type(net[0]) is nn.Conv2d
    assert type(net[0].weight) is nn.Parameter
    after = net.state_dict()
    assert set(after) == {*before, "2.step", "4.step"}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(m.training for m in net.modules())


def test_options_reach_the_quantizers():
    activation = ActivationSpec(bits=2, derivative="relu", step_derivative="exact", step_rate=0.0)
    spec = QuantSpec(
        activation=activation, overrides=(Override(match="4", activation={"bits": 8}),)
    )
    found = activation_quantizers(prepare(convnet(), spec, example=IMAGES))
    found = {name: found[name] for name in ("2", "4")}
    assert [q.bits for q in found.values()] == [2, 8]
    for q in found.values():
        assert (q.derivative, q.step_derivative) == ("relu", "exact")
        assert not q.step.requires_grad


def test_disabled_it_is_the_float_network():
    net = convnet()
    net[4] = nn.ReLU()
    twin = prepare(copy.deepcopy(net), QuantSpec(), example=IMAGES)
    enable_quantizers(twin, False)
    assert torch.equal(twin(IMAGES), net(IMAGES))
    enable_quantizers(twin, True)
    assert not torch.equal(twin(IMAGES), net(IMAGES))


def test_signed_quantizers_on_the_inputs_of_a_transformer():
    net = prepare(Vit(), QuantSpec(), example=IMAGES)
    found = activation_quantizers(net)
    names = ["qkv", "proj", "fc1", "fc2", "head"]
    assert list(found) == [f"{name}.input_quantizer" for name in names]
    assert all(q.signed and q.bits == 4 for q in found.values())
    inputs = {}
    for name in [*names, "patch"]:
        module = net.get_submodule(name)
        module.register_forward_hook(lambda m, a, _, n=name: inputs.update({n: a[0]}))
    net(IMAGES)
    for name in names:
        alpha = net.get_submodule(name).input_quantizer.step.detach()
        assert torch.isin(inputs[name], torch.arange(-7, 8) * alpha).all()
    assert inputs["patch"] is IMAGES


def test_networks_with_input_quantizers_copy_and_pickle():
    net = prepare(Vit(), QuantSpec(), example=IMAGES).eval()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(IMAGES), net(IMAGES))
        with torch.no_grad():
            twin.head.input_quantizer.step.mul_(3)
        assert not torch.equal(twin(IMAGES), net(IMAGES))


def test_input_bits_quantize_the_image():
    net = prepare(convnet(), QuantSpec(input_bits=8), example=IMAGES)
    found = activation_quantizers(net)
    assert set(found) == {"0.input_quantizer", "2", "4"}
    assert found["0.input_quantizer"].signed
    assert found["0.input_quantizer"].bits == 8


def test_pooled_inputs_stay():
    net = prepare(convnet(), QuantSpec(), example=IMAGES)
    assert "7.input_quantizer" not in activation_quantizers(net)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_plan_does_not_depend_on_the_layout(layout):
    """Pooled to one place, channels_last answers through another operator."""
    net = convnet()
    images = torch.randn(2, 1, 16, 16).to(memory_format=layout)
    net[0] = nn.Conv2d(1, 4, 3).to(memory_format=layout)
    prepare(net, QuantSpec(), example=images)
    assert not hasattr(net[7], "input_quantizer")
    assert len(activation_quantizers(net)) == 2


def test_float_activations_are_left_alone():
    net = prepare(convnet(), WEIGHTS_ONLY, example=IMAGES)
    assert activation_quantizers(net) == {}
    assert type(net[2]) is nn.ReLU


def test_each_call_of_a_shared_relu_has_a_step():
    net = prepare(Shared(2), QuantSpec(), example=IMAGES)
    assert list(activation_quantizers(net)) == [f"relu.call_sites.relu_{i}" for i in (0, 1)]
    assert type(net.relu) is nn.ReLU
    assert list(activation_quantizers(prepare(Shared(1), QuantSpec(), example=IMAGES))) == ["relu"]


def test_a_shared_relu_does_not_matter_to_weights_only():
    net = prepare(Shared(2), WEIGHTS_ONLY, example=IMAGES)
    assert type(net.relu) is nn.ReLU


def test_a_relu_with_two_names_is_never_half_replaced():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    net[3] = net[1]
    try:
        prepare(net, QuantSpec())
    except SpecError:
        return
    assert not any(isinstance(module, nn.ReLU) for module in net)


def test_prepare_leaves_no_hook_when_it_refuses():
    net = Shared(2)
    with pytest.raises(RuntimeError):
        prepare(net, QuantSpec(), example=torch.zeros(1, 9, 4, 4))  # wrong channels
    assert not net.relu._forward_hooks
    assert net.training


def test_steps_live_where_the_network_lives():
    net = prepare(convnet().to("meta"), QuantSpec(), example=IMAGES.to("meta"))
    assert {p.device.type for p in net.parameters()} == {"meta"}


@pytest.mark.parametrize("make", [convnet, lambda: Shared(1), lambda: Shared(2)])
def test_without_an_example_it_says_what_was_not_checked(make):
    with pytest.warns(UserWarning, match="did not check whether .*, such as (2|relu), is used sev"):
        prepare(make(), QuantSpec())


@pytest.mark.parametrize("spec", [WEIGHTS_ONLY, QuantSpec()])
def test_with_nothing_to_check_or_an_example_it_says_nothing(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(convnet(), spec, example=None if spec is WEIGHTS_ONLY else IMAGES)


def test_an_image_to_quantize_needs_an_example():
    with pytest.raises(SpecError, match=r"input_bits=8 needs .* give prepare\(\) an example"):
        prepare(convnet(), QuantSpec(input_bits=8))


@pytest.mark.parametrize("example", [None, IMAGES])
def test_nothing_to_quantize_warns(example):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.warns(UserWarning, match="found no activation"):
        prepare(net, QuantSpec(), example=example)


def test_an_override_that_matches_nothing():
    spec = QuantSpec(overrides=(Override(match="nowhere", activation={"bits": 2}),))
    with pytest.raises(SpecError, match="nowhere"):
        prepare(convnet(), spec)


def test_a_float_spec_touches_nothing():
    spec = QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(bits=32),
        activation=ActivationSpec(bits=32),
    )
    net = convnet()
    keys = list(net.state_dict())
    assert list(prepare(net, spec, example=IMAGES).state_dict()) == keys


def test_training_reaches_every_step():
    net = prepare(Vit(), QuantSpec(input_bits=4), example=IMAGES)
    net(IMAGES).square().sum().backward()
    for name, quantizer in activation_quantizers(net).items():
        assert isinstance(quantizer, ActivationQuantizer)
        assert quantizer.step.grad is not None, name
