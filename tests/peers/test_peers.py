"""Each package's parts: scales, ranges and schedules in closed form."""

import sys

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.models.small import LeNet5
from qat.optim.groups import parameter_groups
from qat.peers.methods import METHODS, peer_of
from qat.peers.peer import Peer, convertible, layers


def lenet():
    torch.manual_seed(0)
    return LeNet5(image_size=8)


def images(seed=0):
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def sgd(net):
    groups = parameter_groups(net.named_parameters(), lr=0.1, weight_decay=0.0, step_rate=0.01)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def take_step(net, optimizer):
    optimizer.zero_grad()
    net(images()).square().mean().backward()
    optimizer.step()


def test_unknown_names_and_absent_packages_are_told_in_one_line(monkeypatch):
    with pytest.raises(SpecError, match="method=lsq is unknown; method is one of float, parq"):
        peer_of("lsq")
    monkeypatch.delitem(sys.modules, "qat.peers.brevitas", raising=False)
    monkeypatch.setitem(sys.modules, "brevitas", None)
    monkeypatch.setitem(sys.modules, "brevitas.inject.enum", None)
    with pytest.raises(SpecError, match=r"needs brevitas.*qat\[peers\]"):
        peer_of("brevitas_w1a4")


def test_layers_without_a_counterpart_are_refused():
    with pytest.raises(SpecError, match="1 is a ReLU6"):
        convertible(nn.Sequential(nn.Linear(2, 2), nn.ReLU6()))
    with pytest.raises(SpecError, match="0 is a Conv1d"):
        convertible(nn.Sequential(nn.Conv1d(1, 1, 1)))


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("parq")])
def test_parq_schedule_and_levels(method):
    pytest.importorskip("torchao")
    peer, net = peer_of(method), lenet()
    optimizer = peer.wrap(sgd(net), 8)  # hard from step 6 of 8
    thetas, weight = [], net.conv2.weight
    for _ in range(8):
        take_step(net, optimizer)
        thetas.append(peer.theta(optimizer))
        shown = weight.detach().clone()
        latent = optimizer.state[weight]["latent"].clone()
        with peer.judged(net, optimizer):
            hard = peer.weights(net)["conv2"].clone()
        assert torch.equal(weight, shown)
        # levels are measured at every tenth step, so here at the first
        level = hard.abs().max()
        assert set(hard.unique().tolist()) == {-level.item(), level.item()}
        assert torch.equal(hard.sign(), torch.where(latent > 0, 1.0, -1.0))
    assert thetas[6:] == [1, 1]
    torch.testing.assert_close(shown, hard)
    if method == "parq_binary_relax_w1a32":
        assert thetas[:6] == pytest.approx([t / 6 for t in range(6)])
    else:
        mirror = [1 / (1 + torch.tensor(10 * (t / 6 - 0.5)).exp().item()) for t in range(6)]
        ends = 1 / (1 + torch.tensor([-5.0, 5.0]).exp())
        wanted = [1 - (s - ends[1].item()) / (ends[0] - ends[1]).item() for s in mirror]
        assert thetas[:6] == pytest.approx(wanted, abs=1e-5)


def test_parq_starts_from_the_mean_magnitude_and_keeps_biases_float():
    pytest.importorskip("torchao")
    peer, net = peer_of("parq_w1a32"), lenet()
    optimizer = peer.wrap(sgd(net), 8)
    take_step(net, optimizer)
    weight = net.fc1.weight
    level = optimizer.state[weight]["latent"].abs().mean()
    torch.testing.assert_close(optimizer.state[weight]["quants"], torch.stack([-level, level]))
    with peer.judged(net, optimizer):
        assert len(net.fc1.bias.unique()) > 2
        assert all(len(w.unique()) == 2 for w in peer.weights(net).values())


def test_brevitas_takes_over_the_weights_with_their_mean_magnitude():
    pytest.importorskip("brevitas")
    peer, net, before = peer_of("brevitas_w1a4"), lenet(), lenet()
    peer.convert(net, 2)
    assert len(peer.activations(net)) == 4
    for name, layer in layers(net).items():
        float_layer = before.get_submodule(name)
        assert torch.equal(layer.weight, float_layer.weight)
        assert torch.equal(layer.bias, float_layer.bias)
        scale = float_layer.weight.abs().mean()
        wanted = torch.where(float_layer.weight >= 0, scale, -scale)
        torch.testing.assert_close(peer.weights(net)[name], wanted)


def test_brevitas_four_bits_are_minus_seven_to_seven():
    pytest.importorskip("brevitas")
    peer, net = peer_of("brevitas_w4a4"), lenet()
    peer.convert(net, 2)
    for name, used in peer.weights(net).items():
        weight = net.get_submodule(name).weight.detach()
        scale = weight.abs().max() / 7
        torch.testing.assert_close(used, (weight / scale).round().clamp(-7, 7) * scale)


def test_brevitas_learns_the_activation_scale_after_its_start():
    pytest.importorskip("brevitas")
    peer, net = peer_of("brevitas_w1a4"), lenet()
    peer.convert(net, 2)
    optimizer = sgd(net)
    ends = []
    for _ in range(5):
        take_step(net, optimizer)
        scales = [p for n, p in net.named_parameters() if n.endswith("scaling_impl.value")]
        ends.append([p.item() for p in scales])
    assert len(scales) == 4
    assert ends[0] == ends[1] == [1] * 4
    assert all(a != b != 1 for a, b in zip(ends[3], ends[4], strict=True))


def test_torch_ao_has_four_bits_on_both_sides():
    peer, net = peer_of("torch_ao_w4a4"), lenet()
    peer.convert(net, 4)
    acts = peer.activations(net)
    assert len(acts) == 4
    assert {(a.quant_min, a.quant_max) for a in acts.values()} == {(0, 15)}
    kept = [layer.weight_fake_quant for layer in layers(net).values()]
    assert {(w.quant_min, w.quant_max, w.qscheme) for w in kept} == {
        (-8, 7, torch.per_tensor_symmetric)
    }
    net.train()(images())
    assert {int(q.zero_point) for q in [*acts.values(), *kept]} == {0}
    weight = net.conv2.weight.detach()
    scale = weight.abs().max() / 7.5
    with peer.judged(net, sgd(net)):
        used = peer.weights(net)["conv2"]
    torch.testing.assert_close(used, (weight / scale).round().clamp(-8, 7) * scale)


def test_torch_ao_ranges_stand_still_only_while_judged():
    peer, net = peer_of("torch_ao_w4a4"), lenet()
    peer.convert(net, 4)
    net.train()(images())
    ranges = lambda: [float(a.scale) for a in peer.activations(net).values()]  # noqa: E731
    before = ranges()
    net.eval()
    with torch.no_grad(), peer.judged(net, sgd(net)):
        net(9 * images(1))
    assert ranges() == before
    with torch.no_grad():
        net(9 * images(1))
    assert all(a != b for a, b in zip(ranges(), before, strict=True))


def test_the_control_changes_nothing():
    peer, net = Peer(), lenet()
    before, optimizer = lenet().state_dict(), sgd(net)
    peer.convert(net, 4)
    assert peer.wrap(optimizer, 5) is optimizer
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
