"""The probe: facts of the cosine, dead gradients by construction, no trace, cheap."""

import math
import time

import torch
from torch import nn

from qat import ActivationQuantizer, QuantSpec, enable_quantizers, prepare
from qat.lit.measure.coarse_gradient import gradient_cosine, look


def smooth_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    weights = [m.weight for m in net if isinstance(m, nn.Linear)]

    def loss():
        return nn.functional.cross_entropy(net(x), y)

    return weights, loss


def cosine(weights, gradients, loss, **options):
    given = {"width": 1e-2, "directions": 64, "seed": 0} | options
    return gradient_cosine(weights, gradients, loss, **given)


def test_the_true_gradient_of_a_smooth_network_has_cosine_one():
    weights, loss = smooth_network()
    gradients = torch.autograd.grad(loss(), weights)
    assert cosine(weights, gradients, loss) > 0.999
    assert cosine(weights, [-g for g in gradients], loss) < -0.999
    assert cosine(weights, [3 * g for g in gradients], loss) > 0.999


def test_a_gradient_that_knows_nothing_scatters_around_zero():
    weights, loss = smooth_network()
    found = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        random = [torch.randn(w.shape, generator=generator) for w in weights]
        found.append(cosine(weights, random, loss, directions=16, seed=seed))
    values = torch.tensor(found)
    assert abs(values.mean().item()) < 4 * values.std().item() / math.sqrt(30)
    assert values.abs().max() < 0.999


def test_a_loss_that_does_not_move_has_cosine_zero():
    weights, _ = smooth_network()
    gradients = [torch.ones_like(w) for w in weights]
    assert cosine(weights, gradients, lambda: torch.tensor(1.0)) == 0


def test_the_share_of_dead_gradients():
    """A staircase of one bit, step 1: the clipped derivative lives on 0 < x <= 1."""
    x = torch.tensor([[-1.0], [0.5], [0.9], [2.0]])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.act = ActivationQuantizer(1)
            self.layer.weight.data.fill_(1.0)
            self.act.step.data.fill_(1.0)

        def forward(self, x):
            return self.act(self.layer(x))

    net = Net()
    seen = look(net, lambda: net(x).sum(), width=0.01, directions=2, seed=0)
    assert seen.dead == 0.5
    net.act.derivative = "identity"
    assert look(net, lambda: net(x).sum(), width=0.01, directions=2, seed=0).dead == 0
    net.act.enabled = False
    assert look(net, lambda: net(x).sum(), width=0.01, directions=2, seed=0).dead is None


def test_the_probe_leaves_no_trace():
    torch.manual_seed(1)
    float_net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(144, 3),
    )  # fmt: skip
    images, label = torch.randn(5, 1, 8, 8), torch.arange(5) % 3
    net = prepare(float_net, QuantSpec(), example=images)
    enable_quantizers(net, True)
    net[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    state = torch.get_rng_state()
    seen = look(
        net,
        lambda: nn.functional.cross_entropy(net(images), label),
        width=0.01,
        directions=3,
        seed=0,
    )
    assert 0 < seen.dead < 1
    assert -1 <= seen.cosine <= 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_pre_hooks for m in net.modules())


def look_at(net, loss, *, directions=4, seed=0):
    return look(net, loss, width=0.01, directions=directions, seed=seed)


def test_every_forward_pass_sees_the_same_dropout():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 3))
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    for seed in range(5):
        seen = look_at(net, lambda: nn.functional.cross_entropy(net(x), y), seed=seed)
        assert seen.cosine > 0.999


def test_a_shortcut_around_a_quantizer_keeps_no_gradient_alive():
    """x goes through a quantizer and around it; half of the quantizer's inputs are above 0."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.act = ActivationQuantizer(1)
            self.layer.weight.data.fill_(1.0)
            self.act.step.data.fill_(5.0)

        def forward(self, x):
            x = self.layer(x)
            return x + self.act(x)

    net, x = Net(), torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    assert look_at(net, lambda: net(x).sum()).dead == 0.5


def test_the_clipped_derivative_is_told_from_the_identity():
    """Deep staircases of 2 bits: the identity's gradient tells little of what the loss does."""
    torch.manual_seed(0)
    layers = [nn.Linear(24, 24, bias=False) for _ in range(6)]
    quantizers = [ActivationQuantizer(2) for _ in layers]
    net = nn.Sequential(*(m for pair in zip(layers, quantizers, strict=True) for m in pair))
    for layer in layers:
        nn.init.normal_(layer.weight, std=(2 / 24) ** 0.5)
    x, target = torch.randn(512, 24), torch.rand(512, 24)
    found = {}
    for name in ("clipped_relu", "identity"):
        for quantizer in quantizers:
            quantizer.derivative = name
        seen = look_at(net, lambda: (net(x) - target).square().mean(), directions=64)
        found[name] = seen.cosine
    assert found["clipped_relu"] > 0.9
    assert found["identity"] < 0.7


def test_a_look_costs_a_few_training_steps():
    """2 % of a hundred steps are two; doubled here, for a machine that others use."""
    torch.manual_seed(0)
    blocks = [m for _ in range(4) for m in (nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU())]
    float_net = nn.Sequential(nn.Conv2d(1, 32, 3), *blocks, nn.Flatten(), nn.Linear(32 * 36, 10))
    images, label = torch.randn(64, 1, 16, 16), torch.arange(64) % 10
    net = prepare(float_net, QuantSpec(), example=images[:2])
    enable_quantizers(net, True)

    def loss(count):
        return nn.functional.cross_entropy(net(images[:count]), label[:count])

    def seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    steps = min(seconds(lambda: loss(64).backward()) for _ in range(5))
    looks = min(seconds(lambda: look_at(net, lambda: loss(16))) for _ in range(5))
    assert looks < 4 * steps
