"""Diagnostics: definitions by hand, facts of the cosine, no trace in the training, exact resume."""

import csv
import math

import pytest
import torch
from torch import nn

from qat import ActivationQuantizer, QuantSpec, SpecError, enable_quantizers, prepare, relu_stairs
from qat.functional.staircase import staircase_ste
from qat.lit.diagnostics import Diagnostics
from qat.lit.level_window import MOST_WEIGHTS, occupancy, oscillation, sampled_codes
from qat.lit.probe import gradient_cosine, look
from qat.nn.weight import WeightQuantizer

# one weight a column: still, drifting, flipping to and fro, there and back once, late
CODES = torch.tensor(
    [
        [1, 0, -1, 0, 2],
        [1, 1, 1, 1, 2],
        [1, 2, -1, 1, 2],
        [1, 3, 1, 0, 2],
        [1, 4, -1, 0, 3],
    ],
    dtype=torch.int8,
)


def test_oscillation_counts_flips_against_the_last_one():
    # the third weight flips back three times, the fourth once; 5 weights, 4 steps
    assert oscillation(CODES) == 4 / 20
    assert oscillation(CODES[:2]) == 0
    assert oscillation(CODES[:, :2]) == 0
    far = torch.tensor([[-128], [127], [-128]], dtype=torch.int8)  # the difference needs more bits
    assert oscillation(far) == 1 / 2


def test_occupancy_is_the_share_of_the_most_visited_level():
    assert occupancy(CODES).tolist() == pytest.approx([1, 0.2, 0.6, 0.6, 0.8])


def test_sampled_codes_are_those_of_the_whole_tensor():
    generator = torch.Generator().manual_seed(0)
    quantizer = WeightQuantizer(4)
    small, large = (torch.randn(n, generator=generator) for n in (50, 5000))
    codes = sampled_codes([(large, quantizer), (small, quantizer)])
    every = 5000 // 1024
    expected = [quantizer.encode(small)[0], quantizer.encode(large)[0][::every][:1024]]
    assert torch.equal(codes, torch.cat(expected))
    huge = torch.zeros(MOST_WEIGHTS)
    assert len(sampled_codes([(huge, quantizer), (small, quantizer)])) == 50
    assert len(sampled_codes([(huge, quantizer)])) == 1024


# -- the probe ------------------------------------------------------------------------------------


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


def test_better_derivatives_have_a_better_cosine():
    """Where the coarse derivative is that of a wide staircase, finite differences agree with it."""
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(20, 8, generator=generator, requires_grad=True)
    x, target = (torch.randn(n, generator=generator) for n in ((400, 8), (400, 20)))
    found = {}
    for name in ("clipped_relu", "identity"):

        def loss(name=name):
            y = staircase_ste(x @ w.T, torch.tensor(0.5), stairs=relu_stairs(2), derivative=name)
            return (y - target).square().mean()

        gradient = torch.autograd.grad(loss(), w)
        found[name] = cosine([w], gradient, loss, directions=1, width=0.05)
        # one direction, one layer: the sign alone; its slope is what differs
        assert found[name] == pytest.approx(1)


# -- the callback ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"window": 1}, {"every_n_steps": 5}, {"images": 1}, {"directions": 0}, {"width": 0.0}],
)
def test_options_are_checked(options):
    key, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=f"callbacks.diagnostics.{key}={value}"):
        Diagnostics(**options)


def test_an_open_window_survives_its_checkpoint(tmp_path):
    one = Diagnostics()
    one._codes, one._histogram = [CODES[0], CODES[1]], [0, 1, 2]
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = Diagnostics()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.stack(other._codes), CODES[:2])
    assert other._histogram == [0, 1, 2]


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def measured(rows, name):
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
