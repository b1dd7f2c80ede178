"""Affinity cost as a picture: time against positions, agreement of gradients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from affinity_table import AffinityCost, GradientAgreement

from qat.report.figures.style import COLORS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"
_COLUMNS = 2


def draw_affinity(
    costs: Sequence[AffinityCost], agreements: Sequence[GradientAgreement]
) -> "Figure":
    """One panel per width: time against positions; and the cosine of gradients against k.

    Args:
        costs: any methods, in the order of the legend.
        agreements: any shapes; without any the last panel is left out.
    """
    widths = sorted({cost.channels for cost in costs})
    count = len(widths) + bool(agreements)
    columns = min(_COLUMNS, count)
    with panels(-(-count // columns), columns, width=3.8, height=3.0) as (figure, axes):
        limits = 0.7 * min(cost.ms for cost in costs), 1.4 * max(cost.ms for cost in costs)
        for ax, channels in zip(axes.flat, widths, strict=False):
            _draw_width(ax, [cost for cost in costs if cost.channels == channels])
            ax.set_ylim(limits)
        if agreements:
            _draw_agreement(axes.flat[len(widths)], agreements)
        for ax in axes.flat[count:]:
            ax.set_axis_off()
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


def _draw_width(ax: Any, costs: Sequence[AffinityCost]) -> None:
    for index, method in enumerate(dict.fromkeys(cost.method for cost in costs)):
        own = sorted((c for c in costs if c.method == method), key=lambda c: c.side)
        positions, times = [c.positions for c in own], [c.ms for c in own]
        _line(ax, index, positions, times, label=method)
    ax.set(xscale="log", yscale="log", xlabel="positions n = H W", ylabel="ms")
    ax.set_title(f"time, C = {costs[0].channels}")
    _ticks(ax, {cost.positions for cost in costs})


def _draw_agreement(ax: Any, agreements: Sequence[GradientAgreement]) -> None:
    shapes = dict.fromkeys((a.channels, a.side) for a in agreements)
    for index, (channels, side) in enumerate(shapes):
        own = sorted(
            (a for a in agreements if (a.channels, a.side) == (channels, side)),
            key=lambda a: a.columns,
        )
        label = f"C = {channels}, {side} x {side}"
        _line(ax, index, [a.columns for a in own], [a.cosine for a in own], label=label)
    ax.set(xscale="log", xlabel="directions k", ylabel="cosine with the exact gradient")
    ax.set(ylim=(0, 1.02), title="gradient of FFA")
    ax.legend(loc="upper left")
    _ticks(ax, {a.columns for a in agreements})


def _line(ax: Any, index: int, x: Sequence[float], y: Sequence[float], *, label: str) -> None:
    color, marker = COLORS[index % len(COLORS)], _MARKERS[index % len(_MARKERS)]
    ax.plot(x, y, color=color, marker=marker, markersize=4, label=label)


def _ticks(ax: Any, places: set[int]) -> None:
    """Ticks where something was measured, and nowhere else."""
    ax.set_xticks(sorted(places), labels=[str(place) for place in sorted(places)])
    ax.minorticks_off()
