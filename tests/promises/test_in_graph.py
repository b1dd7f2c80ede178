"""In-graph weights: every method with every coarse derivative trains, resumes exactly, compiles."""

from itertools import product

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from qat import (
    ActivationSpec,
    QuantOptimizer,
    QuantSpec,
    RuleSpec,
    WeightSpec,
    audit,
    enable_quantizers,
    float_only,
    load_weights,
    prepare,
    start_steps,
    weight_projections,
)
from qat.functional.ste import DERIVATIVES
from qat.quantize.plan import quantizer_for
from qat.quantize.prepare import set_progress
from qat.quantize.weights import latent_weight, weight_parametrizations
from support.products import mostly_slow

METHODS = {"lsq": 4, "dorefa": 1, "dorefa ": 3, "reste": 1, "biper": 1}
BATCH = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(12) % 3


def spec_of(method, derivative=None, activation=None):
    return QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(method=method.strip(), bits=METHODS[method], derivative=derivative),
        activation=activation or ActivationSpec(bits=2),
    )


def floats():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Run:
    """A prepared two-layer network and its optimizer."""

    def __init__(self, spec):
        self.net = prepare(floats(), spec, example=BATCH)
        start_steps(self.net, spec, [BATCH])
        base = torch.optim.SGD(self.net.named_parameters(), lr=0.05, momentum=0.9)
        projections = weight_projections(self.net, spec)
        assert projections == {}  # the update rule leaves these tensors alone
        self.optimizer = QuantOptimizer(base, projections, float_only())

    def train(self, start, stop):
        for step in range(start, stop):
            set_progress(self.net, step / 4)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(BATCH), LABEL).backward()
            self.optimizer.step()
        return self


def same(one, other):
    left, right = one.net.state_dict(), other.net.state_dict()
    assert left.keys() == right.keys()
    assert not [key for key in left if not torch.equal(left[key], right[key])]


@pytest.mark.parametrize("derivative", [None, *DERIVATIVES])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.product
def test_two_steps_and_an_exact_resume(method, derivative):
    spec = spec_of(method, derivative)
    whole = Run(spec).train(0, 4)
    first, second = Run(spec).train(0, 2), Run(spec)
    before = floats().state_dict()["0.weight"]
    assert not torch.equal(latent_weight(first.net, "0"), before)
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    same(first, second)
    same(whole, second.train(2, 4))


# a fixed slope, one that reads its sharpness from a buffer, and the method's own
@pytest.mark.parametrize(
    ("method", "derivative"),
    mostly_slow(list(product(METHODS, [None, "dsq", "tanh"])), day=(0, 10)),
)
def test_compiled_training_is_eager_training(method, derivative):
    torch._dynamo.reset()
    spec = spec_of(method, derivative)
    compiled = Run(spec)
    counter = CompileCounterWithBackend("aot_eager")
    compiled.net.compile(fullgraph=True, backend=counter)
    same(Run(spec).train(0, 4), compiled.train(0, 4))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", ["lsq", "pact", "dorefa", "sign"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.product
def test_activations_of_the_baselines(kind, derivative):
    bits = 1 if kind == "sign" else 3
    shift = "channel" if kind == "sign" else "none"
    activation = ActivationSpec(kind=kind, bits=bits, derivative=derivative, shift=shift)
    spec = spec_of("lsq", activation=activation)
    whole = Run(spec).train(0, 4)
    first, second = Run(spec).train(0, 2), Run(spec)
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    same(whole, second.train(2, 4))
    if derivative in ("clipped_relu", "power"):
        torch._dynamo.reset()
        compiled = Run(spec)
        compiled.net.compile(fullgraph=True, backend="aot_eager")
        same(whole, compiled.train(0, 4))


@pytest.mark.parametrize("method", METHODS)
def test_audit_and_codes(method):
    spec = spec_of(method)
    run = Run(spec).train(0, 3)
    found = audit(run.net, spec, BATCH)
    assert found.quantized_share == 1
    assert found.bits == METHODS[method]
    for layer, (name, _) in zip(found.layers, weight_parametrizations(run.net), strict=True):
        module = run.net.get_submodule(name)
        quantizer = quantizer_for(run.net, name, spec.weight)
        codes, scale = quantizer.encode(latent_weight(run.net, name))
        assert codes.dtype == torch.int8
        assert torch.equal(quantizer.decode(codes, scale), module.weight)
        assert layer.grid == method.strip()
        assert layer.levels <= len(quantizer.levels)
    # what a method learns besides is counted as its scales, not as the network's
    other = QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(bits=32),
        activation=spec.activation,
    )
    plain = audit(prepare(floats(), other, example=BATCH), other, BATCH)
    assert found.float_bytes == plain.float_bytes


@pytest.mark.parametrize("method", METHODS)
def test_float_weights_load_into_a_prepared_network(method):
    spec = spec_of(method)
    net = prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), spec, example=BATCH)
    kept = load_weights(net, floats().state_dict())
    assert any("step" in key for key in kept)
    enable_quantizers(net, False)
    signed = net[0].get_submodule("input_quantizer") if hasattr(net[0], "input_quantizer") else None
    assert signed is None
    torch.testing.assert_close(net(BATCH), floats()(BATCH), rtol=0, atol=0)
    start_steps(net, spec, [BATCH])
    twin = prepare(floats(), spec, example=BATCH)
    start_steps(twin, spec, [BATCH])
    assert torch.equal(net(BATCH), twin(BATCH))


def test_channel_scales():
    spec = QuantSpec(
        rule=RuleSpec(name="float_only"),
        weight=WeightSpec(method="lsq", bits=4, granularity="channel"),
        activation=ActivationSpec(bits=32),
    )
    net = prepare(floats(), spec, example=BATCH)
    assert [p.scale.shape for _, p in weight_parametrizations(net)] == [(8, 1), (3, 1)]
    assert audit(net, spec, BATCH).bytes == (72 * 4 + 7) // 8 + 4 * (11 + 11)
