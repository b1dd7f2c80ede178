"""Estimator figure: the coarse derivatives over the forward pass that they stand in for."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qat.functional.stairs import Stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope, sign_slope
from qat.names import Derivative
from qat.report.figures.style import COLORS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_POINTS = 1201
_MOMENTS = (
    (0.0, "-", "coarse derivative"),
    (0.5, "--", "halfway through its schedule"),
    (1.0, ":", "at the end of its schedule"),
)


def draw_estimators(stairs: Stairs | None = None) -> "Figure":
    """One panel per member: the forward pass, the coarse derivative and its antiderivative mu.

    Scheduled members are shown at the start, the middle and the end of their schedule.

    Args:
        stairs: codes of the forward pass, x in steps; None for the sign.
    """
    rows = -(-len(DERIVATIVES) // _COLUMNS)
    low, high = (-2.0, 2.0) if stairs is None else (stairs.start - 1.5, stairs.high + 2.0)
    x = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    with panels(rows, _COLUMNS, width=2.9, height=2.3) as (figure, axes):
        for name, ax in zip(DERIVATIVES, axes.flat, strict=False):
            _draw_member(ax, x, name, stairs)
        for ax in axes.flat[len(DERIVATIVES) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("x" if stairs is None else "x / alpha")
        named: dict[str, Any] = {}
        for ax in axes.flat:
            named |= {
                label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
            }
        axes.flat[-1].legend(named.values(), named, loc="center", fontsize=9)
        figure.suptitle("sign" if stairs is None else f"staircase of {stairs.high + 1} levels")
        return figure


def _draw_member(ax: Any, x: Tensor, name: Derivative, stairs: Stairs | None) -> None:
    ax.set_title(name)
    ax.plot(x, _forward(x, stairs), color="0.6", linewidth=2.5, label="forward pass")
    member = ESTIMATORS[name]
    for progress, style, label in _MOMENTS[: 3 if member.is_scheduled else 1]:
        sharpness = member.sharpness(progress)
        slope = (
            sign_slope(x, name, sharpness=sharpness)
            if stairs is None
            else coarse_slope(x, name, stairs=stairs, sharpness=sharpness)
        )
        ax.plot(x, slope, style, color=COLORS[0], label=label)
        if progress == 0:
            mu = _antiderivative(x, slope, *_anchor(name, stairs))
            ax.plot(x, mu, color=COLORS[1], label="its antiderivative mu")
    _frame(ax, *((-1.6, 3.2) if stairs is None else (stairs.low - 0.8, stairs.high + 0.6)))


def _frame(ax: Any, low: float, high: float) -> None:
    """The same axis for every panel, longer where a curve goes beyond it: peaks are shown whole."""
    data, margin = ax.dataLim, 0.03 * (high - low)
    ax.set_ylim(min(low, data.ymin - margin), max(high, data.ymax + margin))


def _forward(x: Tensor, stairs: Stairs | None) -> Tensor:
    if stairs is None:
        return torch.where(x < 0, -1.0, 1.0)
    return (x - stairs.shift).ceil().clamp(stairs.low, stairs.high)


def _anchor(name: Derivative, stairs: Stairs | None) -> tuple[float, float]:
    """A point of mu: the lower end of the range and the lowest level, or the middle of a jump."""
    if ESTIMATORS[name].frame == "range":
        return (-1.0, -1.0) if stairs is None else (stairs.start, stairs.low)
    return (0.0, 0.0) if stairs is None else (stairs.low + stairs.shift, stairs.low + 0.5)


def _antiderivative(x: Tensor, slope: Tensor, place: float, value: float) -> Tensor:
    """Antiderivative of the slope by the trapezoidal rule, with mu(place) = value."""
    mu = torch.cat([x.new_zeros(1), torch.cumulative_trapezoid(slope, x)])
    return mu - mu[torch.searchsorted(x, place)] + value
