"""Cost figure: accuracy against what a network costs, with its Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.compare.pareto import Point, pareto_front
from qat.report.compare.statistics import Interval
from qat.report.figures.curves import HEIGHT, LEGEND_LINE, LINE_COLORS, WIDTH
from qat.report.figures.style import panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# seven signs and eight colours: the first 56 networks have a pair each of their own
_MARKERS = "osD^vPX"
# shares of the axis: what lies closer is of equal cost, and is drawn this far apart, all in all
_CLOSE, _STEP, _WIDEST = 0.005, 0.025, 0.12


def draw_cost(
    points: Sequence[Point],
    *,
    xlabel: str,
    ylabel: str = "test accuracy (%)",
    intervals: Mapping[str, Interval] | None = None,
    others: Sequence[Point] = (),
) -> "Figure":
    """A marker per group, its interval as a bar, the Pareto front of our points as a line.

    Points of equal cost stand side by side; the front is that of their true costs.

    Args:
        points: ours.
        xlabel: of the logarithmic axis of costs.
        ylabel: of the accuracy in percent.
        intervals: of the accuracies, 0..1, by label.
        others: of the literature, in settings of their own: hollow, and not in the front.
    """
    lines = len(points) + len({point.source for point in others}) + 1
    with panels(width=WIDTH, height=HEIGHT + LEGEND_LINE * lines) as (figure, axes):
        ax = axes[0, 0]
        front = pareto_front(points)
        steps = [p.cost for p in front], [100 * p.accuracy for p in front]
        ax.plot(*steps, color="0.5", linewidth=1, linestyle="--", drawstyle="steps-post", zorder=1)
        handles = [ax.lines[0]]
        places = spread_costs([point.cost for point in points])
        for index, (point, place) in enumerate(zip(points, places, strict=True)):
            interval = (intervals or {}).get(point.label)
            handles.append(_draw_point(ax, point._replace(cost=place), index, interval))
        labels = ["Pareto front", *(plain(point.label) or "-" for point in points)]
        for index, source in enumerate(dict.fromkeys(point.source for point in others)):
            own = [point for point in others if point.source == source]
            handles.append(_draw_others(ax, own, index))
            labels.append(f"others' setting: {plain(source)}")
        ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        _label_costs(ax)
        shown = [f" {label}" if label.startswith("_") else label for label in labels]
        figure.legend(handles, shown, loc="outside lower left")
        return figure


def spread_costs(costs: Sequence[float]) -> list[float]:
    """Places on a logarithmic axis at which equal costs stand side by side, in their order.

    >>> spread_costs([10.0, 1000.0])
    [10.0, 1000.0]

    Args:
        costs: a cost that is not positive keeps its place.
    """
    known = sorted((cost, index) for index, cost in enumerate(costs) if cost > 0)
    span = max(math.log(known[-1][0] / known[0][0]), 0.1) if known else 0.0
    clusters: list[list[tuple[float, int]]] = []
    for cost, index in known:
        if clusters and math.log(cost / clusters[-1][0][0]) <= _CLOSE * span:
            clusters[-1].append((cost, index))
        else:
            clusters.append([(cost, index)])
    places = list(costs)
    for own in clusters:
        step = span * min(_STEP, _WIDEST / len(own))
        for rank, (cost, index) in enumerate(own):
            places[index] = cost * math.exp(step * (rank - (len(own) - 1) / 2))
    return places


def _draw_point(ax: Any, point: Point, index: int, interval: Interval | None) -> Any:
    style: dict[str, Any] = {
        "color": LINE_COLORS[index % len(LINE_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # networks that cost and reach the same lie on each other: the first is the largest
        "markersize": max(9 - index, 5),
    }
    if interval is not None:
        ends = [100 * min(max(end, 0.0), 1.0) for end in interval]
        ax.plot([point.cost] * 2, ends, color=style["color"], linewidth=1.2)
    height = 100 * point.accuracy
    return ax.plot([point.cost], [height], linestyle="", **style)[0]


def _draw_others(ax: Any, points: Sequence[Point], index: int) -> Any:
    costs = [point.cost for point in points]
    heights = [100 * point.accuracy for point in points]
    drawn = ax.plot(
        *(costs, heights, _MARKERS[index % len(_MARKERS)]),
        markerfacecolor="none",
        markeredgecolor="0.5",
        linestyle="",
    )
    for point in points:
        place = (point.cost, 100 * point.accuracy)
        note = plain(point.label)
        ax.annotate(note, place, (4, -3), textcoords="offset points", fontsize=7, color="0.5")
    return drawn[0]


def _label_costs(ax: Any) -> None:
    """Ticks at 1, 2 and 5 with K, M, G: a short axis would else have one tick, or none."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())
