"""Diagnostics figure of a run, from the rows of its metrics.csv."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.report.figures.style import COLORS, panels, save_figure
from qat.storage.csv_table import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# metric -> what the axis says
METRICS = {
    "quant/dead_gradients": "share of dead gradients",
    "quant/gradient_cosine": "cosine with finite differences",
    "quant/flip_rate": "weights that flip, share per step",
    "quant/oscillation": "weights that flip back, share per step",
    "quant/occupancy": "occupancy of the most visited level, mean",
    "quant/settled": "share of weights that stay at one level",
    "quant/distance": "||w - Q(w)|| / ||w||",
}
_PANELS: tuple[tuple[str, ...], ...] = (
    ("quant/dead_gradients",),
    ("quant/gradient_cosine",),
    ("quant/flip_rate", "quant/oscillation"),
    ("quant/occupancy", "quant/settled"),
    ("quant/distance",),
)

# what has a natural range is shown in it, so that noise does not look like a trend
_LIMITS = {
    "quant/dead_gradients": (0.0, 1.0),
    "quant/gradient_cosine": (-1.05, 1.05),
}
_FROM_ZERO = ("quant/flip_rate", "quant/distance")


def save_diagnostics(folder: Path, histogram: Sequence[int] = ()) -> bool:
    """Draw RUN/figures/diagnostics.png and .svg from RUN/metrics.csv.

    Args:
        folder: run folder.
        histogram: as `draw_diagnostics`.

    Returns:
        Whether there was anything to draw.
    """
    rows = read_rows(folder / "metrics.csv")
    if not any(row.get(name) for row in rows for name in METRICS):
        return False
    save_figure(draw_diagnostics(rows, histogram), folder / "figures" / "diagnostics")
    return True


def draw_diagnostics(rows: Sequence[Mapping[str, str]], histogram: Sequence[int] = ()) -> "Figure":
    """One panel per kind of metric over the optimizer steps.

    Args:
        rows: of metrics.csv.
        histogram: number of weights by steps (0 .. w) at their most visited level, summed over the
            windows of w steps; empty for none.
    """
    steps = [int(row["step"]) for row in rows if any(row.get(name) for name in METRICS)]
    with panels(2, 3, width=3.4, height=2.8) as (figure, axes):
        for names, ax in zip(_PANELS, axes.flat, strict=False):
            _draw_metrics(ax, rows, names)
            if steps:  # one axis of time, so that the panels can be compared
                margin = 0.04 * (max(steps) - min(steps)) or 1.0
                ax.set_xlim(min(steps) - margin, max(steps) + margin)
        _draw_histogram(axes[1, 2], histogram)
        return figure


def _draw_metrics(ax: Any, rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> None:
    """The metrics of one panel; markers are not cut where a value lies on the frame."""
    top = 0.0
    for color, name, style in zip(COLORS, names, (".-", ".--"), strict=False):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        steps, values = [step for step, _ in points], [value for _, value in points]
        (line,) = ax.plot(steps, values, style, color=color, label=METRICS[name], markersize=6)
        line.set_clip_on(not points)  # matplotlib makes no room beside an empty line without end
        top = max([top, *values])
    if not any(row.get(name) for row in rows for name in names):
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.5")
    if names[0] in _LIMITS:
        ax.set_ylim(*_LIMITS[names[0]])
    elif names[0] in _FROM_ZERO:
        ax.set_ylim(0, 1.08 * top or 1.0)
    ax.set_xlabel("optimizer step")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.05, 1.0), borderaxespad=0.2)


def _draw_histogram(ax: Any, histogram: Sequence[int]) -> None:
    total = sum(histogram)
    if not total:
        ax.set_axis_off()
        return
    window = len(histogram) - 1
    share = [count / total for count in histogram]
    ax.bar([step / window for step in range(window + 1)], share, width=0.8 / window)
    ax.set_yscale("log")
    ax.set_ylim(min(value for value in share if value) / 3, 2)
    ax.set_xlim(0, 1 + 0.6 / window)
    ax.set_title("all windows of the run", loc="left", fontsize=8)
    ax.set(xlabel=f"occupancy within {window} steps", ylabel="share of weights")
