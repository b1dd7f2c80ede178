"""Quantization in a plain loop: phases, exact state, results."""

import copy
import io

import numpy as np
import pytest
import torch
from loop.modules import classifier_net, convs
from torch import nn

from qat.errors import CheckpointError, QatError, SpecError
from qat.export.packed.network import load_packed
from qat.loop.quantization import Quantization
from qat.optim.groups import parameter_groups
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import bcgd
from qat.quantize.calibrate import start_steps
from qat.quantize.plan import weight_projections
from qat.quantize.prepare import prepare
from qat.spec.presets import named_quantization

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4
STEPS = 6


def network():
    torch.manual_seed(0)
    return classifier_net()


def begun(name, *, steps=STEPS, warm_steps=0, base=torch.optim.Adam, **options):
    net = network()
    training = Quantization(net, name, example=IMAGES)
    optimizer = training.wrap(
        base(net.parameters(), lr=0.01), steps=steps, warm_steps=warm_steps, **options
    )
    return training, optimizer


def step(training, optimizer):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(training.net(IMAGES), LABELS)
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_phases_of_binary_relax():
    training, optimizer = begun("binary_relax_w2a4", steps=10, warm_steps=3)
    seen = []
    for _ in range(10):
        seen.append((training.is_quantized, len(training.net[4].weight.unique()) == 3))
        step(training, optimizer)
    # three float steps, then 75 % of seven relaxed ones, then hard ones
    assert seen == [(False, False)] * 3 + [(True, False)] * 5 + [(True, True)] * 2
    with training.evaluating() as net:
        assert not net.training
        assert len(net[4].weight.unique()) == 3
    assert training.net.training


def test_evaluation_is_hard_in_the_relaxed_phase_and_float_in_the_warm_start():
    training, optimizer = begun("binary_relax_w1a4", steps=8, warm_steps=2)
    levels = []
    for _ in range(5):
        step(training, optimizer)
        with training.evaluating():
            levels.append(len(training.net[4].weight.unique()))
    assert levels == [32, 2, 2, 2, 2]


def test_it_is_the_loop_of_the_parts_bit_for_bit():
    spec = named_quantization("bcgd_w1a4")
    net = network()
    prepare(net, spec, example=IMAGES[:2])
    groups = parameter_groups(net.named_parameters(), lr=0.01, weight_decay=None, step_rate=0.01)
    optimizer = QuantOptimizer(torch.optim.Adam(groups), weight_projections(net, spec), bcgd())
    start_steps(net, spec, [IMAGES])
    training = Quantization(network(), spec, example=IMAGES)
    own = parameter_groups(
        training.net.named_parameters(), lr=0.01, weight_decay=None, step_rate=0.01
    )
    wrapped = training.wrap(torch.optim.Adam(own))
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(IMAGES), LABELS)
        loss.backward()
        optimizer.step()
        assert torch.equal(loss.detach(), step(training, wrapped))
    pairs = zip(net.state_dict().items(), training.net.state_dict().items(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("name", ["bcgd_w1a4", "binary_relax_w2a4", "lsq_w4a4", "reste_w1a1"])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_state_goes_on_bit_for_bit(name, stop):
    whole, optimizer = begun(name, warm_steps=2)
    for number in range(STEPS):
        if number == stop:
            buffer = io.BytesIO()
            torch.save(whole.state_dict(), buffer)
        step(whole, optimizer)
    again, other = begun(name, warm_steps=2)
    step(again, other)  # whatever it has done before
    again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert again.is_quantized is (stop >= 2)
    for _ in range(STEPS - stop):
        step(again, other)
    pairs = zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # without an optimizer, what an evaluation sees
    judged = Quantization(network(), name, example=IMAGES)
    judged.load_state_dict(copy.deepcopy(whole.state_dict()))
    with whole.evaluating(), judged.evaluating(), torch.no_grad():
        assert torch.equal(whole.net(IMAGES), judged.net(IMAGES))


def test_states_that_do_not_fit_are_refused():
    training, optimizer = begun("bcgd_w1a4")
    step(training, optimizer)
    state = training.state_dict()
    with pytest.raises(CheckpointError, match="version 7"):
        training.load_state_dict(state | {"version": 7})
    other = Quantization(convs(3, 4), "bcgd_w1a4", example=IMAGES)
    with pytest.raises(CheckpointError, match="weights do not fit") as caught:
        other.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_numbers_of_steps():
    net = network()
    training = Quantization(net, "binary_relax_w1a4", example=IMAGES)
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(SpecError, match=r"needs steps=.*schedule"):
        training.wrap(base)
    with pytest.raises(SpecError, match="below steps, got 5 of 5"):
        training.wrap(base, steps=5, warm_steps=5)
    signs = Quantization(network(), "bcgd_w1a1", example=IMAGES)  # a scheduled derivative
    with pytest.raises(SpecError, match="needs steps="):
        signs.wrap(torch.optim.SGD(signs.net.parameters(), lr=0.1))
    plain = Quantization(network(), "bcgd_w1a4", example=IMAGES)
    with pytest.raises(SpecError, match="warm start"):
        plain.wrap(torch.optim.SGD(plain.net.parameters(), lr=0.1), warm_steps=2)
    plain.wrap(torch.optim.SGD(plain.net.parameters(), lr=0.1))
    assert plain.is_quantized


def test_a_base_that_is_stepped_past_its_wrapper_is_refused():
    net = network()
    training = Quantization(net, "bcgd_w1a4", example=IMAGES)
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    training.wrap(base)
    nn.functional.cross_entropy(net(IMAGES), LABELS).backward()
    with pytest.raises(QatError, match="past the rule"):
        base.step()


def test_measured_steps_start_from_the_images_given():
    spec = {"activation": {"step_start": "batches"}}
    steps = []
    for images in (None, [10 * IMAGES]):
        training, _ = begun(spec, images=images)
        first = next(m for m in training.net.modules() if hasattr(m, "step"))
        steps.append(float(first.step))
    assert steps[0] != steps[1]


@pytest.mark.parametrize("form", ["faithful", "general"])
def test_results_answer_as_the_network_does(form, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net = network()
    if form == "general":
        net[1] = nn.SiLU()
    training = Quantization(net, "bcgd_w1a4", example=IMAGES)
    optimizer = training.wrap(torch.optim.Adam(net.parameters(), lr=0.01))
    for _ in range(3):
        step(training, optimizer)
    with training.evaluating(), torch.no_grad():
        wanted = net(IMAGES)
    found = training.audit()
    size = training.save_packed(tmp_path / "net.safetensors")
    assert found.bytes < size
    fresh = classifier_net()
    if form == "general":
        fresh[1] = nn.SiLU()
    opened = load_packed(tmp_path / "net.safetensors", model=fresh).net
    with torch.no_grad():
        assert torch.equal(opened(IMAGES), wanted)
    assert training.save_onnx(tmp_path / "net.onnx") == form
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (logits,) = session.run(None, {"image": IMAGES.numpy()})
    agree = np.argmax(logits, 1) == wanted.argmax(1).numpy()
    assert agree.mean() >= 11 / 12
    assert training.net.training  # it trains on
    step(training, optimizer)
