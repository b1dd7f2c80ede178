"""Coarse derivatives: what stands for the derivative of a staircase in backward, the whole family.

A staircase has derivative 0 almost everywhere. A straight-through estimator puts the derivative of
another function mu in its place, chosen freely and independently of the forward pass. Positions are
in steps of the staircase, z = x / alpha, and every member looks at z in one of two frames:

    range   u = z - start of the range, length L in steps: u <= 0 lies below the range, u > L above.
            Made for quantized ReLUs: identity, relu, clipped_relu and the monotone class.
    cell    v = 2 (z - nearest jump): 0 at a jump, -1 and 1 halfway to its neighbours (the outermost
            cells go on to infinity). Made for the sign, whose only cell has v = x; on a staircase
            the same function acts around each jump.

A slope of 1 in every cell is the identity's: cell members whose integral over (-1, 1) is 2 climb
exactly as the staircase does. `ESTIMATORS` is the one table of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.stairs import Stairs
from qat.names import Derivative

DERIVATIVES: tuple[Derivative, ...] = get_args(Derivative)

Sharpness = Tensor | float

# ReSTE: the secant replaces the derivative below, and nothing passes above
_POWER_SMALL, _POWER_END = 0.1, 1.5
# EDE: sharpness at the start and at the end, as in the authors' CIFAR code
_TANH_START, _TANH_END = 1e-3, 10.0
_POWER_LAST = 3.0


def coarse_slope(
    z: Tensor, name: Derivative, *, stairs: Stairs, sharpness: Sharpness | None = None
) -> Tensor:
    """Coarse derivative of a staircase of step 1 at z.

    Args:
        z: position x / alpha in steps, any shape, floating point.
        name: member of the family.
        stairs: the codes.
        sharpness: 0-dim parameter of a cell member; None takes the start of its schedule.

    Returns:
        Slope of z's shape and dtype.
    """
    member = estimator(name)
    if member.frame == "range":
        return member.slope(z - stairs.start, float(stairs.count))
    offset = z - stairs.shift
    jump = offset.round().clamp(stairs.low, stairs.high - 1)
    return member.slope((offset - jump).mul_(2), _sharpness(member, sharpness))


def sign_slope(x: Tensor, name: Derivative, *, sharpness: Sharpness | None = None) -> Tensor:
    """Coarse derivative of sign(x): levels -1 and 1, the jump at 0, the range (-1, 1].

    The step between the levels is 2, so u = (x + 1) / 2, L = 1 and v = x: clipped_relu is the
    derivative of clip(x, -1, 1).

    Args:
        x: any shape, floating point.
        name: member of the family.
        sharpness: as in `coarse_slope`.

    Returns:
        Slope of x's shape and dtype.
    """
    member = estimator(name)
    if member.frame == "range":
        return member.slope((x + 1) / 2, 1.0)
    return member.slope(x, _sharpness(member, sharpness))


def _sharpness(member: "Estimator", sharpness: Sharpness | None) -> Sharpness:
    return member.sharpness(0.0) if sharpness is None else sharpness


# -- range: slope(u, L) ---------------------------------------------------------------------------


def identity(u: Tensor, length: Sharpness) -> Tensor:
    """Slope of mu(u) = u.

        1

    >>> identity(torch.tensor([-1.0, 0.5, 9.0]), 3.0).tolist()
    [1.0, 1.0, 1.0]

    Source: arXiv:1903.05662.
    """
    return torch.ones_like(u)


def relu(u: Tensor, length: Sharpness) -> Tensor:
    """Slope of mu(u) = max(u, 0).

        0   u <= 0
        1   u > 0

    >>> relu(torch.tensor([-1.0, 0.5, 9.0]), 3.0).tolist()
    [0.0, 1.0, 1.0]

    Source: arXiv:1903.05662.
    """
    return (u > 0).to(u.dtype)


def clipped_relu(u: Tensor, length: Sharpness) -> Tensor:
    """Slope of mu(u) = min(max(u, 0), L).

        1   0 < u <= L
        0   elsewhere

    >>> clipped_relu(torch.tensor([-1.0, 0.5, 9.0]), 3.0).tolist()
    [0.0, 1.0, 0.0]

    Source: arXiv:1808.05240, arXiv:1903.05662.
    """
    return ((u > 0) & (u <= length)).to(u.dtype)


def log_tailed_relu(u: Tensor, length: Sharpness) -> Tensor:
    """Slope of mu(u) = max(u, 0) up to L, then L + log(u - L + 1).

        0                 u <= 0
        1                 0 < u <= L
        1 / (u - L + 1)   u > L

    >>> log_tailed_relu(torch.tensor([-1.0, 0.5, 4.0]), 3.0).tolist()
    [0.0, 1.0, 0.5]

    Source: in the class of arXiv:2011.11256; the tail is that of HWGQ, arXiv:1702.00953.
    """
    return relu(u, length) / (u - length).clamp(min=0).add(1)


def reverse_exponential(u: Tensor, length: Sharpness) -> Tensor:
    """Slope of mu(u) = L (1 - exp(-u / L)) for u > 0.

        0             u <= 0
        exp(-u / L)   u > 0

    >>> reverse_exponential(torch.tensor([-1.0, 3.0]), 3.0).mul(math.e).tolist()
    [0.0, 1.0]

    Source: in the class of arXiv:2011.11256.
    """
    return relu(u, length) * torch.exp(-u.clamp(min=0) / length)


# -- cell: slope(v, sharpness) --------------------------------------------------------------------


def piecewise_quadratic(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of mu(v) = 2 v + v^2 on [-1, 0) and 2 v - v^2 on [0, 1].

        2 - 2 |v|   |v| <= 1
        0           elsewhere

    The sharpness is not used.

    >>> piecewise_quadratic(torch.tensor([0.0, -0.5, 2.0]), 0.0).tolist()
    [2.0, 1.0, 0.0]

    Source: Bi-Real Net, arXiv:1808.00278.
    """
    return (2 - 2 * v.abs()).clamp(min=0)


def tanh(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of a scaled hyperbolic tangent of sharpness t.

        mu(v) = k tanh(t v),   k = max(1 / t, 1)
        k t (1 - tanh(t v)^2)

    At 0 it is max(1, t): the identity's early, peaked late. t grows geometrically from 0.001 to 10
    (`tanh_schedule`).

    >>> tanh(torch.tensor([0.0]), 4.0).tolist(), tanh(torch.tensor([0.0]), 0.5).tolist()
    ([4.0], [1.0])

    Source: the error decay estimator of IR-Net, arXiv:1909.10788; the ends as in the authors' code.
    """
    return _max_with_one(sharpness) * (1 - torch.tanh(sharpness * v).square())


def power(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of mu(v) = sign(v) |v|^(1/o), sharpness o >= 1, with m = 0.1 and an end at 1.5.

        m^(1/o) / m             |v| <= m   (the secant: the derivative has no bound at 0)
        (1/o) |v|^(1/o - 1)     m < |v| <= 1.5
        0                       |v| > 1.5

    o = 1 is the clipped identity; o grows from 1 to 3 (`power_schedule`).

    >>> power(torch.tensor([0.5, 1.4, 1.6]), 1.0).tolist()
    [1.0, 1.0, 0.0]

    Source: ReSTE, arXiv:2308.06689.
    """
    size = v.abs()
    exponent = 1 / sharpness - 1  # m^(1/o) / m is m^exponent as well
    slope = size.clamp(min=_POWER_SMALL).pow(exponent)
    slope = torch.where(size > _POWER_SMALL, slope / sharpness, slope)
    return torch.where(size > _POWER_END, torch.zeros_like(slope), slope)


def periodic(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of mu(v) = sin(om v), sharpness om (pi / 2: half a period fills the cell).

        om cos(om v)   |v| <= 1
        0              elsewhere

    Unlike the paper, which binarizes sin(om w) of a weight with om = 20 (`qat.nn.parametrization`
    has that pair), this is the slope around a jump of any staircase.

    >>> [round(slope, 4) for slope in periodic(torch.tensor([0.0, 0.5]), math.pi / 2).tolist()]
    [1.5708, 1.1107]

    Source: after BiPer, arXiv:2404.01278.
    """
    # the clamp: cos(inf) is NaN, and NaN * 0 as well
    return sharpness * torch.cos(sharpness * v.clamp(-1, 1)) * _inside(v)


def dsq(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of mu(v) = s tanh(k v) with s = 1 / (1 - a), k = log(2 / a - 1) / 2, sharpness a.

        s k (1 - tanh(k v)^2)   |v| <= 1
        0                       elsewhere

    s tanh(k) = 1, so neighbouring cells join: the integral over a cell is exact. a in (0, 0.5) is
    1 - tanh(k): small is a hard step, 0.5 nearly straight. Unlike the paper, a is fixed (0.2).

    >>> [round(slope, 4) for slope in dsq(torch.tensor([0.0, 2.0]), 0.2).tolist()]
    [1.3733, 0.0]

    Source: arXiv:1908.05033.
    """
    k = _log(2 / sharpness - 1) / 2
    return k / (1 - sharpness) * (1 - torch.tanh(k * v).square()) * _inside(v)


def swish_sign(v: Tensor, sharpness: Sharpness) -> Tensor:
    """Slope of mu(v) = 2 sg(b v) (1 + b v (1 - sg(b v))) - 1, sg the logistic function.

        b (2 - b v tanh(b v / 2)) / (1 + cosh(b v)),   sharpness b = 5

    Negative where |b v| > 2.4: mu overshoots the levels.

    >>> swish_sign(torch.tensor([0.0]), 5.0).tolist()
    [5.0]

    Source: BNN+, arXiv:1812.11800.
    """
    t = (sharpness * v).clamp(-60, 60)  # cosh overflows soon after, where the slope is long 0
    return sharpness * (2 - t * torch.tanh(t / 2)) / (1 + torch.cosh(t))


def _inside(v: Tensor) -> Tensor:
    return (v.abs() <= 1).to(v.dtype)


def _log(value: Sharpness) -> Sharpness:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _max_with_one(value: Sharpness) -> Sharpness:
    return value.clamp(min=1) if isinstance(value, Tensor) else max(value, 1.0)


# -- schedules: progress of the quantized phase, 0 .. 1 -> sharpness ------------------------------


def tanh_schedule(progress: float) -> float:
    """T = 0.001 * 10^(4 progress): geometric from 0.001 to 10.

    Source: arXiv:1909.10788, ends as in the authors' code.
    """
    return float(_TANH_START * (_TANH_END / _TANH_START) ** progress)


def power_schedule(progress: float) -> float:
    """O = 1 + 2 (1 - cos(pi progress / 2)): from 1 to 3.

    Source: arXiv:2308.06689.
    """
    return 1 + (_POWER_LAST - 1) * (1 - math.cos(math.pi * progress / 2))


def _constant(value: float) -> Callable[[float], float]:
    return lambda progress: value


_UNUSED = _constant(0.0)


# -- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimator:
    """A member of the family.

    Attributes:
        slope: (u, L) -> slope in frame "range", (v, sharpness) -> slope in frame "cell".
        frame: which position the slope looks at.
        sharpness: progress of the quantized phase, 0 .. 1 -> parameter of a cell member.
        is_scheduled: whether the sharpness moves.
    """

    slope: Callable[[Tensor, Sharpness], Tensor]
    frame: Literal["range", "cell"] = "range"
    sharpness: Callable[[float], float] = _UNUSED
    is_scheduled: bool = False


ESTIMATORS: dict[Derivative, Estimator] = {
    "identity": Estimator(identity),
    "relu": Estimator(relu),
    "clipped_relu": Estimator(clipped_relu),
    "log_tailed_relu": Estimator(log_tailed_relu),
    "reverse_exponential": Estimator(reverse_exponential),
    "piecewise_quadratic": Estimator(piecewise_quadratic, "cell"),
    "tanh": Estimator(tanh, "cell", tanh_schedule, is_scheduled=True),
    "power": Estimator(power, "cell", power_schedule, is_scheduled=True),
    "periodic": Estimator(periodic, "cell", _constant(math.pi / 2)),
    "dsq": Estimator(dsq, "cell", _constant(0.2)),
    "swish_sign": Estimator(swish_sign, "cell", _constant(5.0)),
}


def estimator(name: Derivative) -> Estimator:
    """The member of this name.

    Raises:
        SpecError: there is none.
    """
    if name not in ESTIMATORS:
        raise SpecError(f"derivative must be one of {', '.join(ESTIMATORS)}; got {name!r}")
    return ESTIMATORS[name]
