"""Learning curves: a line per group, with a band where there are several seeds."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from qat.report.compare.bands import Band
from qat.report.figures.style import COLORS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 2.6
_HEIGHT_OF_TWO = 2.1  # of each of two panels
# more lines than colours cannot be told apart
MOST_LINES = len(COLORS)
# height of a line of the legend, inches
LEGEND_LINE = 0.17
_INK = "#000000"
# the first is for the reference; the others keep their order
LINE_COLORS = (_INK, *(color for color in COLORS if color != _INK))


# what fills less of the axis than this is flat, and shown once more by itself
_FLAT = 1 / 3
_FEW = 4  # places, of which one sees no more when they are large


class Late(NamedTuple):
    """The end of training, where differences are small.

    Attributes:
        begin: its first place.
        limits: of an axis that shows all values from there on.
    """

    begin: float
    limits: tuple[float, float]


def draw_bands(
    bands: Mapping[str, Band],
    *,
    xlabel: str,
    ylabel: str,
    scale: float = 1.0,
    begin: float | None = None,
    limits: tuple[float, float] | None = None,
    late: Late | None = None,
    colors: Mapping[str, str] | None = None,
) -> "Figure":
    """Means as lines, mean +- sd as bands; no axis is cut.

    Args:
        bands: label -> band, at most MOST_LINES of them.
        xlabel: of the axis of places.
        ylabel: of the values.
        scale: values are multiplied with, e.g. 100 for percent.
        begin: place at which the quantized phase begins, drawn as a line; None for none.
        limits: of all values, before they are multiplied; None takes those of `bands`.
        late: drawn once more in a panel of its own, and a box in the first one; None for none.
        colors: label -> colour; None takes them in turn.
    """
    colors = colors or dict(zip(bands, LINE_COLORS, strict=False))
    views = [Late(float("-inf"), limits or limits_of(bands.values()))] + ([late] if late else [])
    height = (_HEIGHT_OF_TWO if late else HEIGHT) + LEGEND_LINE * len(bands) / len(views)
    with panels(len(views), width=WIDTH, height=height) as (figure, axes):
        for ax, view in zip(axes[:, 0], views, strict=True):
            for label, band in bands.items():
                _draw_band(ax, since(band, view.begin), scale, colors[label])
            if begin is not None and begin >= view.begin:
                ax.axvline(begin, color="0.5", linewidth=0.9, linestyle=":")
            ax.set_ylim(*(scale * limit for limit in view.limits))
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_ylabel(ylabel)
        if late:
            _box(*axes[:, 0])
        axes[-1, 0].set_xlabel(xlabel)
        if len(bands) > 1:
            _add_legend(figure, axes[0, 0], [plain(label) for label in bands])
        return figure


def limits_of(bands: Collection[Band]) -> tuple[float, float]:
    """Ends of an axis that shows all of all bands, at least one of which has a place."""
    every = [
        mean + side * spread
        for band in bands
        for mean, spread in zip(band.means, band.spreads, strict=True)
        for side in (-1, 1)
    ]
    low, high = min(every), max(every)
    margin = 0.04 * ((high - low) or abs(high)) or 0.01
    return low - margin, high + margin


def late_of(bands: Collection[Band], begin: float | None = None) -> Late | None:
    """The second half of the quantized phase, if it is flat beside all of training.

    What is learned first, and what quantization tears down, is large; what methods differ by in the
    end is small. None where one axis shows both.

    Args:
        bands: at least one of which has a place.
        begin: place at which the quantized phase begins; None for that of training.
    """
    places = [place for band in bands for place in band.places]
    middle = ((min(places) if begin is None else begin) + max(places)) / 2
    own = [band for band in (since(band, middle) for band in bands) if len(band.places) >= _FEW]
    if not own:
        return None
    (low, high), (lowest, highest) = limits_of(own), limits_of(bands)
    return Late(middle, (low, high)) if high - low < _FLAT * (highest - lowest) else None


def since(band: Band, begin: float) -> Band:
    """The places of a band from `begin` on."""
    kept = [index for index, place in enumerate(band.places) if place >= begin]
    return replace(
        band,
        places=tuple(band.places[index] for index in kept),
        means=tuple(band.means[index] for index in kept),
        spreads=tuple(band.spreads[index] for index in kept),
    )


def _box(whole: Any, part: Any) -> None:
    """Show in the whole what the part enlarges."""
    from matplotlib.patches import Rectangle

    (left, right), (low, high) = part.get_xlim(), part.get_ylim()
    box = Rectangle((left, low), right - left, high - low, fill=False, color="0.5", linewidth=0.9)
    whole.add_patch(box)
    part.set_title("the box, enlarged", loc="left", fontsize=8)


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
