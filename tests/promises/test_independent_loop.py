"""rho = 0.3, theta = 0.6 for five steps against loops in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import UpdateRule

RHO, THETA, STEPS = 0.3, 0.6, 5
LR, DECAY = 0.03, 0.02
RANDOM = np.random.default_rng(0)
A, B, START = RANDOM.normal(size=(20, 12)), RANDOM.normal(size=20), RANDOM.normal(size=12)


def binary(w):
    return np.where(w >= 0, 1.0, -1.0) * np.abs(w).mean()


def sgd(w, velocity, gradient, _):
    gradient = gradient + DECAY * w
    velocity = gradient if velocity is None else 0.9 * velocity + gradient
    return w - LR * velocity, velocity


def adamw(w, moments, gradient, t):
    first, second = moments or (0.0, 0.0)
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    w = w * (1 - LR * DECAY)
    size = np.sqrt(second / (1 - 0.999**t)) + 1e-8
    return w - LR * first / (1 - 0.9**t) / size, (first, second)


def by_hand(direction):
    """Latent and forward weights after five steps on ||A x - b||^2 / 2."""
    w, memory = START, None
    for t in range(1, STEPS + 1):
        x = (1 - THETA) * w + THETA * binary(w)
        gradient = A.T @ (A @ x - B)
        start = (1 - RHO) * w + RHO * x
        w, memory = direction(start, memory, gradient, t)
    return w, (1 - THETA) * w + THETA * binary(w)


BASES = {
    "sgd": (sgd, lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=DECAY)),
    "adamw": (adamw, lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY)),
}


@pytest.mark.parametrize("name", BASES)
def test_five_steps(name):
    direction, make = BASES[name]
    p = nn.Parameter(torch.tensor(START))
    rule = UpdateRule(blend=lambda t: RHO, relax=lambda t: THETA)
    # the quantizer's arithmetic is float32; the loop here is not to see its rounding
    optimizer = QuantOptimizer(make([p]), {p: lambda w: torch.tensor(binary(w.numpy()))}, rule)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (0.5 * (torch.tensor(A) @ p - torch.tensor(B)).square().sum()).backward()
        optimizer.step()
    latent, forward = by_hand(direction)
    np.testing.assert_allclose(optimizer.latent_pairs()[0][0].numpy(), latent, rtol=1e-12)
    np.testing.assert_allclose(p.detach().numpy(), forward, rtol=1e-12)
    with optimizer.hard_weights():
        np.testing.assert_allclose(p.detach().numpy(), binary(latent), rtol=1e-12)


def test_the_quantizers_own_projection_differs_by_rounding_alone():
    direction, make = BASES["sgd"]
    p = nn.Parameter(torch.tensor(START, dtype=torch.float32))
    rule = UpdateRule(blend=lambda t: RHO, relax=lambda t: THETA)
    optimizer = QuantOptimizer(make([p]), {p: WeightQuantizer(1)}, rule)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (0.5 * (torch.tensor(A).float() @ p - torch.tensor(B).float()).square().sum()).backward()
        optimizer.step()
    latent, forward = by_hand(direction)
    np.testing.assert_allclose(optimizer.latent_pairs()[0][0].numpy(), latent, rtol=2e-4)
    np.testing.assert_allclose(p.detach().numpy(), forward, rtol=2e-4)
