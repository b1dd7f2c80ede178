"""Statistics of a few seeds: spread, intervals, paired differences, many of them at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import stdtr, stdtrit

# accuracies are written down from float32: a spread below this share of them is its rounding, and
# would make two seeds with equal differences look like certainty
_ROUNDING = 1e-6


class Interval(NamedTuple):
    """From `low` to `high`, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A sample in a few numbers; a single value has no spread, so no interval.

    Attributes:
        n: number of values, >= 1.
        mean: of the values.
        sd: sample standard deviation, with n - 1.
        interval: of the mean.
        prediction: in which one further value of the same kind lies.
    """

    n: int
    mean: float
    sd: float | None
    interval: Interval | None
    prediction: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Paired differences, values minus reference.

    Attributes:
        n: number of pairs, >= 1.
        mean: of the differences.
        sd: of the differences.
        interval: of their mean.
        p: two-sided, of the paired t test; None for one pair, or where all differences are
            equal but not 0: a spread of 0 says nothing about the noise.
    """

    n: int
    mean: float
    sd: float | None
    interval: Interval | None
    p: float | None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value, rounded once."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation sqrt(sum (v - mean)^2 / (n - 1)); None for fewer than two."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((v - center) ** 2 for v in values) / (len(values) - 1))


def interval_of_mean(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Interval mean +- t sd / sqrt(n), t the quantile of Student's t with n - 1 degrees of freedom.

    Args:
        values: of independent runs; fewer than two give None.
        level: share of such intervals that hold the true mean, in (0, 1).
    """
    return _around(values, level, math.sqrt(1 / max(len(values), 1)))


def prediction_interval(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Interval mean +- t sd sqrt(1 + 1/n): where one further run lies.

    Args:
        values: of independent runs; fewer than two give None.
        level: share of such intervals that hold the next value, in (0, 1).
    """
    return _around(values, level, math.sqrt(1 + 1 / max(len(values), 1)))


def summarize(values: Sequence[float], *, level: float = 0.95) -> Summary | None:
    """The summary of a sample, None for an empty one.

    Args:
        values: finite numbers.
        level: of both intervals, in (0, 1).
    """
    if not values:
        return None
    return Summary(
        n=len(values),
        mean=mean(values),
        sd=deviation(values),
        interval=interval_of_mean(values, level=level),
        prediction=prediction_interval(values, level=level),
    )


def paired_difference(
    values: Sequence[float], reference: Sequence[float], *, level: float = 0.95
) -> Difference | None:
    """Mean difference of pairs with its interval, and p of the paired t test; None for no pair.

    Args:
        values: one per seed.
        reference: of the same seeds in the same order.
        level: of the interval, in (0, 1).
    """
    gaps = [v - r for v, r in zip(values, reference, strict=True)]
    if not gaps:
        return None
    center, sd = mean(gaps), deviation(gaps)
    size = max(map(abs, (*values, *reference)))
    if sd is not None and sd <= _ROUNDING * size:
        same = abs(center) <= _ROUNDING * size
        return Difference(n=len(gaps), mean=center, sd=0.0, interval=None, p=1.0 if same else None)
    t = center / sd * math.sqrt(len(gaps)) if sd else None
    return Difference(
        n=len(gaps),
        mean=center,
        sd=sd,
        interval=interval_of_mean(gaps, level=level),
        p=None if t is None else two_sided_p(t, len(gaps) - 1),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for being read together (Holm); what was not tested stays None.

    The k-th smallest of m is multiplied by m - k + 1, then made monotone and cut at 1. Rejecting
    what is below 0.05 makes one false claim in the whole table with probability 0.05 at most.

    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = highest
    return corrected


def _around(values: Sequence[float], level: float, factor: float) -> Interval | None:
    sd = deviation(values)
    if sd is None:
        return None
    half = t_quantile((1 + level) / 2, len(values) - 1) * sd * factor
    center = mean(values)
    return Interval(center - half, center + half)


def two_sided_p(t: float, df: int) -> float:
    """P value, two-sided: P(|T| >= |t|) for T of Student's t distribution.

    Args:
        t: any number; 0 gives 1.
        df: degrees of freedom, >= 1.
    """
    return 2 * float(stdtr(df, -abs(t)))  # the lower tail, whose digits do not cancel


def t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t distribution: the t with P(T <= t) = probability.

    Args:
        probability: in (0, 1); 0.5 gives 0.
        df: degrees of freedom, >= 1.

    >>> round(t_quantile(0.975, 4), 4)
    2.7764
    """
    return float(stdtrit(df, probability))
