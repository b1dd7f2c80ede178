"""The diagnostics of a run as a picture, from the rows of its metrics.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.report.figure import COLORS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# metric -> what the axis says
METRICS = {
    "quant/dead_gradients": "share of dead gradients",
    "quant/gradient_cosine": "cosine with finite differences",
    "quant/flip_rate": "share of codes that flip in a step",
    "quant/oscillation": "share that flips back in a step",
    "quant/occupancy": "mean occupancy of the most visited level",
    "quant/settled": "share of weights that stay",
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
_LIMITS: dict[str, tuple[float | None, float | None]] = {
    "quant/dead_gradients": (0.0, 1.0),
    "quant/gradient_cosine": (-1.0, 1.0),
    "quant/flip_rate": (0.0, None),
    "quant/distance": (0.0, None),
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv; what was not logged is an empty text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_diagnostics(rows: Sequence[Mapping[str, str]], histogram: Sequence[int] = ()) -> "Figure":
    """One panel per kind of metric over the optimizer steps.

    Args:
        rows: of metrics.csv.
        histogram: number of weights by steps (0 .. w) at their most visited level in the last
            window of w steps; empty for none.
    """
    with panels(2, 3, width=3.3, height=2.8) as (figure, axes):
        for names, ax in zip(_PANELS, axes.flat, strict=False):
            for color, name in zip(COLORS, names, strict=False):
                _draw_metric(ax, rows, name, color)
            ax.set_xlabel("optimizer step")
            ax.set_ylim(*_LIMITS.get(names[0], (None, None)))
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
        _draw_histogram(axes[1, 2], histogram)
        return figure


def _draw_metric(ax: Any, rows: Sequence[Mapping[str, str]], name: str, color: str) -> None:
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    if points:
        steps, values = zip(*points, strict=True)
        ax.plot(steps, values, ".-", color=color, label=METRICS[name], markersize=5)
    else:
        ax.plot([], [], color=color, label=METRICS[name])
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.5")


def _draw_histogram(ax: Any, histogram: Sequence[int]) -> None:
    total = sum(histogram)
    if not total:
        ax.set_axis_off()
        return
    window = len(histogram) - 1
    share = [count / total for count in histogram]
    ax.bar([step / window for step in range(window + 1)], share, width=0.8 / window)
    ax.set_yscale("log")
    ax.set(xlabel=f"occupancy in the last {window} steps", ylabel="share of weights")
