"""Student's t distribution: tail probability and quantile, from the incomplete beta function."""

import math
from functools import lru_cache


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function.

        I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * sum_n x^n prod_{k<n} (a+b+k) / (a+1+k)

    All terms of the series are positive, so nothing cancels; 1 - I_{1-x}(b, a) is taken on the
    side where it converges faster.

    Args:
        x: in [0, 1]; 0 gives 0 and 1 gives 1.
        a: > 0.
        b: > 0.

    >>> round(incomplete_beta(0.3, 1, 1), 12)
    0.3
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    if x <= 0:
        return 0.0
    term = total = 1.0
    n = 0
    while term > 1e-17 * total:
        term *= x * (a + b + n) / (a + 1 + n)
        total += term
        n += 1
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return total * math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a


def two_sided_p(t: float, df: int) -> float:
    """P(|T| >= |t|) = I_x(df/2, 1/2) at x = df / (df + t^2), for T of Student's t distribution.

    Args:
        t: any number; 0 gives 1.
        df: degrees of freedom, >= 1.
    """
    square = t * t
    if square < df:  # near x = 1 the digits of t are in 1 - x
        return 1 - incomplete_beta(square / (df + square), 0.5, df / 2)
    return incomplete_beta(df / (df + square), df / 2, 0.5)


@lru_cache(maxsize=1024)
def t_quantile(probability: float, df: int) -> float:
    """The t with P(T <= t) = probability, by bisection down to neighbouring floats.

    Args:
        probability: in (0, 1); 0.5 gives 0.
        df: degrees of freedom, >= 1.

    >>> round(t_quantile(0.975, 4), 4)
    2.7764
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while two_sided_p(high, df) > tail:
        low, high = high, 2 * high
    middle = (low + high) / 2
    while low < middle < high:
        low, high = (middle, high) if two_sided_p(middle, df) > tail else (low, middle)
        middle = (low + high) / 2
    return middle
