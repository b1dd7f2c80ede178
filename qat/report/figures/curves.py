"""Learning curves: a line per group, with a band where there are several seeds."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from qat.report.compare.bands import Band
from qat.report.figures.style import COLORS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 2.6
# more lines than colours cannot be told apart
MOST_LINES = len(COLORS)
# height of a line of the legend, inches
LEGEND_LINE = 0.17
_INK = "#000000"
# the first is for the reference; the others keep their order
LINE_COLORS = (_INK, *(color for color in COLORS if color != _INK))


def draw_bands(
    bands: Mapping[str, Band],
    *,
    xlabel: str,
    ylabel: str,
    scale: float = 1.0,
    begin: float | None = None,
    limits: tuple[float, float] | None = None,
    colors: Mapping[str, str] | None = None,
) -> "Figure":
    """Means as lines, mean +- sd as bands.

    Args:
        bands: label -> band, at most MOST_LINES of them.
        xlabel: of the axis of places.
        ylabel: of the values.
        scale: values are multiplied with, e.g. 100 for percent.
        begin: place at which the quantized phase begins, drawn as a line; None for none.
        limits: of the values, before they are multiplied; None shows all.
        colors: label -> colour; None takes them in turn.
    """
    colors = colors or dict(zip(bands, LINE_COLORS, strict=False))
    with panels(width=WIDTH, height=HEIGHT + LEGEND_LINE * len(bands)) as (figure, axes):
        ax = axes[0, 0]
        for label, band in bands.items():
            _draw_band(ax, band, scale, colors[label])
        if begin is not None:
            ax.axvline(begin, color="0.5", linewidth=0.9, linestyle=":")
        if limits is not None:
            ax.set_ylim(*(scale * limit for limit in limits))
        ax.set(xlabel=xlabel, ylabel=ylabel)
        if len(bands) > 1:
            _add_legend(figure, ax, [plain(label) for label in bands])
        return figure


def limits_of(bands: Collection[Band], *, zoom: bool = False) -> tuple[float, float]:
    """Ends of an axis that shows all bands.

    Args:
        bands: at least one.
        zoom: leave out what lies far below all values of the second half of training; it would
            flatten the rest.
    """
    every = [
        mean + side * spread
        for band in bands
        for mean, spread in zip(band.means, band.spreads, strict=True)
        for side in (-1, 1)
    ]
    low, high = min(every), max(every)
    if zoom:
        late = min(mean for band in bands for mean in band.means[len(band.means) // 2 :])
        low = max(low, late - 0.5 * (high - late))
    margin = 0.04 * (high - low) or 0.01
    return low - margin, high + margin


def _draw_band(ax: Any, band: Band, scale: float, color: str) -> None:
    means = [scale * mean for mean in band.means]
    # a single place is a point, which a line would not show
    marker = "o" if len(means) == 1 else None
    ax.plot(band.places, means, color=color, marker=marker, markersize=4)
    if any(band.spreads):
        low = [mean - scale * sd for mean, sd in zip(means, band.spreads, strict=True)]
        high = [mean + scale * sd for mean, sd in zip(means, band.spreads, strict=True)]
        ax.fill_between(band.places, low, high, color=color, alpha=0.15, linewidth=0)


def _add_legend(figure: "Figure", ax: Any, labels: list[str]) -> None:
    """Below the axes, so that it hides nothing; labels that begin with _ are shown too."""
    shown = [f" {label}" if label.startswith("_") else label for label in labels]
    figure.legend(ax.lines[: len(labels)], shown, loc="outside lower left")
