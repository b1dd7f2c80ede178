"""FFA as an estimator: its mean, its spread, and what its first order estimates."""

import math

import pytest
import torch

from qat.functional.affinity.feature_affinity import affinity, feature_affinity, projected_affinity
from support.products import mostly_slow

DRAWS = 3000


@pytest.fixture(scope="module")
def maps():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, c, 3, 4, dtype=torch.float64, generator=generator) for c in (4, 6))


def draws(maps, **options):
    generator = torch.Generator().manual_seed(1)
    values = [projected_affinity(*maps, generator=generator, **options) for _ in range(DRAWS)]
    return torch.stack(values)


@pytest.mark.parametrize("columns", mostly_slow([1, 4, 15], day=(1,)))
def test_order_two_is_unbiased_with_the_spread_of_theory(maps, columns):
    d = (affinity(maps[0]) - affinity(maps[1]))[0]
    spread = math.sqrt(2 / columns) * float(torch.linalg.norm(d @ d) / torch.linalg.norm(d) ** 2)
    ratio = draws(maps, columns=columns) / feature_affinity(*maps)
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * spread / math.sqrt(DRAWS))
    # the sampling error of a standard deviation, from the fourth moment
    kurtosis = float((ratio - 1).pow(4).mean()) / spread**4
    error = math.sqrt((kurtosis - 1) / (4 * DRAWS))
    assert error < 0.05
    assert float(ratio.std()) == pytest.approx(spread, rel=4 * error)
    assert spread <= math.sqrt(2 / columns)


def test_order_one_estimates_the_lengths_of_the_rows(maps):
    d = (affinity(maps[0]) - affinity(maps[1]))[0]
    values = draws(maps, columns=8, order=1)
    mean = math.sqrt(2 / math.pi) * float(d.square().sum(1).sqrt().sum()) / 12**2
    error = float(values.std()) / math.sqrt(DRAWS)
    assert float(values.mean()) == pytest.approx(mean, abs=4 * error)
    # and not the entrywise l1 of FA
    assert abs(float(values.mean() - feature_affinity(*maps, order=1))) > 40 * error


def test_many_directions_point_the_gradient_along_the_exact_one(maps):
    student = maps[0].clone().requires_grad_()
    (exact,) = torch.autograd.grad(feature_affinity(student, maps[1]), student)
    cosines = []
    for columns in (15, 150, 15_000):
        generator = torch.Generator().manual_seed(2)
        loss = projected_affinity(student, maps[1], columns=columns, generator=generator)
        (found,) = torch.autograd.grad(loss, student)
        cosines.append(float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)))
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99
