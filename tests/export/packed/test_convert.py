"""convert and put on whole networks: the same logits to the last bit."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from qat.errors import CheckpointError, NonFiniteError, SpecError
from qat.export.packed.convert import convert, latent_state, put, quantizer_of
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import bcgd, binary_relax
from qat.quantize.loading import load_weights
from qat.quantize.plan import quantizer_for, resolve, weight_projections
from qat.quantize.weights import latent_weight
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec
from support.networks import (
    CASES,
    LARGE,
    Tied,
    images,
    lenet,
    moved,
    prepared,
    tiny,
    weights,
)

DOREFA = weights(4, method="dorefa")


def wrapped(net, spec, rule):
    base = torch.optim.SGD(net.parameters(), lr=0.05)
    return QuantOptimizer(base, weight_projections(net, spec), rule)


def same_codes(a, b):
    assert list(a.weights) == list(b.weights)
    return all(torch.equal(a.weights[n].codes, b.weights[n].codes) for n in a.weights)


@torch.no_grad()
def logits(net):
    return net(images())


@pytest.fixture(params=[*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def case(request):
    return (CASES | LARGE)[request.param]


def test_the_converted_network_has_the_logits_of_the_hard_one(case):
    make, spec = case
    net = moved(prepared(make, spec))
    optimizer = wrapped(net, spec, bcgd())
    with optimizer.hard_weights():
        converted = convert(net, spec)
        wanted = logits(net)
    fresh = prepared(make, spec, seed=7)
    assert not torch.equal(logits(fresh), wanted)
    put(fresh, converted)
    assert torch.equal(logits(fresh), wanted)
    assert not any(parametrize.is_parametrized(module) for module in fresh.modules())


def test_latent_and_hard_weights_give_the_same_codes(case):
    make, spec = case
    net = moved(prepared(make, spec))
    optimizer = wrapped(net, spec, bcgd())
    with optimizer.latent_weights():
        latent = convert(net, spec)
    with optimizer.hard_weights():
        hard = convert(net, spec)
    assert same_codes(latent, hard)
    for name, weight in latent.weights.items():
        assert torch.equal(weight.hard(), hard.weights[name].hard())
    assert latent.residue.keys() == hard.residue.keys()
    assert all(torch.equal(latent.residue[key], hard.residue[key]) for key in hard.residue)


def test_every_entry_of_the_state_is_a_code_or_residue(case):
    make, spec = case
    net = prepared(make, spec)
    converted = convert(net, spec)
    coded = {id(latent_weight(net, name)) for name in converted.weights}
    for key, value in net.state_dict(keep_vars=True).items():
        assert (id(value) in coded) != (key in converted.residue)
    assert list(resolve(net, spec).quantized) == list(converted.weights)


def test_convert_leaves_the_network_alone_and_shares_no_memory(case):
    make, spec = case
    net = prepared(make, spec)
    before = copy.deepcopy(net.state_dict())
    converted = convert(net, spec)
    for value in (*converted.residue.values(), *(w.scale for w in converted.weights.values())):
        value.add_(1)
    after = net.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_network_saved_in_the_relaxed_phase_gives_the_codes_of_its_latents():
    spec = weights(2)
    net = prepared(lenet, spec).train()
    optimizer = wrapped(net, spec, binary_relax(1.0, 1.02, hard_from=100))
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(images(8, step)), torch.arange(8) % 5).backward()
        optimizer.step()
    assert 0 < optimizer.theta < 1
    saved = copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    again = prepared(lenet, spec, seed=3)
    restored = wrapped(again, spec, binary_relax(1.0, 1.02, hard_from=100))
    again.load_state_dict(saved["net"])
    restored.load_state_dict(saved["optimizer"])
    with restored.latent_weights():
        converted = convert(again, spec)
    latent = saved["optimizer"]["qat"]["latent"]
    assert len(latent) == len(converted.weights)
    layers = resolve(again, spec).quantized
    for (name, weight), w in zip(converted.weights.items(), latent.values(), strict=True):
        codes, scale = quantizer_of(layers[name]).encode(w)
        assert torch.equal(weight.codes, codes)
        assert torch.equal(weight.scale, scale)
        assert not torch.equal(saved["net"][f"{name}.weight"], weight.hard())


def test_a_shared_weight_is_stored_once_and_stays_shared():
    spec = weights(3)
    net = moved(prepared(Tied, spec))
    converted = convert(net, spec)
    assert list(converted.weights) == ["stem", "a", "head"]
    assert "b.weight" not in converted.residue
    fresh = prepared(Tied, spec, seed=5)
    put(fresh, converted)
    assert fresh.b.weight is fresh.a.weight
    assert torch.equal(fresh.b.weight, converted.weights["a"].hard())


@pytest.mark.parametrize("name", ["ternary", "overrides", "tied", "lsq", "dorefa"])
def test_training_can_go_on_from_the_hard_weights(name):
    make, spec = CASES[name]
    converted = convert(moved(prepared(make, spec)), spec)
    fresh = prepared(make, spec, seed=5)
    assert load_weights(fresh, latent_state(fresh, converted)) == []
    specs = resolve(fresh, spec).quantized
    for layer, weight in converted.weights.items():
        codes, _ = quantizer_for(fresh, layer, specs[layer]).encode(latent_weight(fresh, layer))
        same = float((codes == weight.codes).double().mean())
        # the projections on uniform and power-of-two grids are not exact, so a few codes may move
        assert same == 1 if weight.quantizer.kind not in ("uniform", "power_of_two") else same > 0.9


@pytest.mark.parametrize("other", ["lsq", "input-bits", "dorefa", "float"])
def test_training_can_go_on_with_other_options(other):
    """What the file's quantizers have learned is left out, as of float weights."""
    converted = convert(moved(prepared(lenet, weights(1))), weights(1))
    floating = QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(bits=32),
        activation=ActivationSpec(bits=32),
    )
    spec = floating if other == "float" else {**CASES, "dorefa": (lenet, DOREFA)}[other][1]
    fresh = prepared(lenet, spec, seed=5)
    started = load_weights(fresh, latent_state(fresh, converted))
    # DoReFa's weights learn nothing besides, so the steps of the activations are all that is kept
    assert bool(started) == (other in ("lsq", "input-bits"))
    weight = converted.weights["conv1"].hard()
    assert torch.equal(latent_weight(fresh, "conv1"), weight)


def test_a_network_without_its_quantizers_is_refused():
    spec = weights(3, method="lsq")
    with pytest.raises(SpecError, match=r"^the weight 0 has no lsq quantizer") as error:
        convert(tiny(), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
def test_a_weight_shared_by_two_in_graph_quantizers_is_refused(method):
    spec = weights(3, method=method)
    with pytest.raises(
        SpecError, match=rf"^the weight b is another layer's too.* {method} "
    ) as error:
        convert(prepared(Tied, spec), spec)
    assert "\n" not in str(error.value)


def dropped(residue):
    del residue["1.running_mean"]


def added(residue):
    residue["9.bias"] = torch.zeros(1)


def reshaped(residue):
    residue["5.bias"] = torch.zeros(6)


def retyped(residue):
    residue["1.weight"] = residue["1.weight"].double()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dropped, r"missing 1\.running_mean$"),
        (added, r"unexpected 9\.bias$"),
        (reshaped, r"5\.bias is torch.float32 of shape \(6,\), .* shape \(5,\)$"),
        (retyped, r"1\.weight is torch.float64 of shape \(4,\), .*wants torch.float32"),
    ],
)
def test_a_residue_that_does_not_fit_is_refused_and_changes_nothing(change, match):
    spec = weights(2)
    converted = convert(prepared(tiny, spec), spec)
    change(converted.residue)
    fresh = prepared(tiny, spec, seed=5)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(CheckpointError, match=match) as error:
        put(fresh, converted)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_many_problems_are_counted():
    spec = weights(2)
    converted = convert(prepared(tiny, spec), spec)
    converted.residue.clear()
    with pytest.raises(CheckpointError, match=r"missing 1\.bias; .* \(and \d more\)$"):
        put(prepared(tiny, spec), converted)


def test_values_that_are_not_finite_are_named():
    make, spec = CASES["binary"]
    net = prepared(make, spec)
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"conv1\.weight .* not finite"):
        convert(net, spec)
