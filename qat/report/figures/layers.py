"""Layer figures: a line per layer while it trains, histograms against the grid."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.compare.bands import Band
from qat.report.compare.layers import LayerHistogram
from qat.report.figures.curves import HEIGHT, WIDTH
from qat.report.figures.style import COLORS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED = COLORS[:2]
_COLUMNS, _ROWS = 2, 3
_SIDE_BY_SIDE = 48  # letters that fit beside each other in a legend


def draw_layers(bands: Mapping[str, Band], *, ylabel: str) -> "Figure":
    """One line per layer, coloured by depth: the first blue, the last red.

    Args:
        bands: layer -> band over steps, in order of depth.
        ylabel: what is drawn.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("depth", [BLUE, "#9a7fa8", RED])
    with panels(width=WIDTH, height=HEIGHT + 0.3) as (figure, axes):
        ax = axes[0, 0]
        for index, band in enumerate(bands.values()):
            color = colors(index / max(len(bands) - 1, 1))
            marker = "o" if len(band.places) == 1 else None
            ax.plot(band.places, band.means, color=color, linewidth=1.1, marker=marker)
        ax.set(xlabel="optimizer step", ylabel=ylabel)
        if _spans_decades(bands):
            ax.set_yscale("log")
        names = [plain(name) for name in bands]
        ends = [ax.lines[0], ax.lines[-1]] if len(names) > 1 else ax.lines[:1]
        words = [f"first: {names[0]}", f"last: {names[-1]}"][: len(ends)]
        beside = 2 if len("".join(words)) <= _SIDE_BY_SIDE else 1
        figure.legend(ends, words, loc="outside lower left", ncols=beside)
        return figure


def _spans_decades(bands: Mapping[str, Band]) -> bool:
    """Whether small layers would be flat lines beside the largest."""
    ends = [band.means[-1] for band in bands.values()]
    return min(ends) > 0 and max(ends) > 10 * min(ends)


def spread_out(histograms: Sequence[LayerHistogram]) -> list[LayerHistogram]:
    """At most six layers, evenly by depth, the first and the last among them."""
    most = _ROWS * _COLUMNS
    if len(histograms) <= most:
        return list(histograms)
    return [histograms[round(i * (len(histograms) - 1) / (most - 1))] for i in range(most)]


def draw_histograms(histograms: Sequence[LayerHistogram]) -> "Figure":
    """Latent weights over training, one strip per snapshot, the start at the bottom.

    Each layer has its own panel; stronger blue holds more weights, dashed lines are the levels of
    the grid.

    Args:
        histograms: at most six layers.
    """
    rows = -(-len(histograms) // _COLUMNS)
    with panels(rows, _COLUMNS, width=WIDTH / _COLUMNS, height=1.35) as (figure, axes):
        for ax in axes.flat[len(histograms) :]:
            ax.set_axis_off()
        for index, histogram in enumerate(histograms):
            _draw_strips(axes.flat[index], histogram)
            if index + _COLUMNS >= len(histograms):  # nothing below it
                axes.flat[index].set_xlabel("latent weight / scale", fontsize=8)
        return figure


def _draw_strips(ax: Any, histogram: LayerHistogram) -> None:
    from matplotlib.colors import to_rgb

    # one colour whose opacity tells the share: it reads on a white and on a black ground
    top = max(max(counts) for counts in histogram.counts) or 1.0
    strips = [[(*to_rgb(BLUE), (c / top) ** 0.7) for c in counts] for counts in histogram.counts]
    extent = (histogram.low, histogram.high, 0, len(strips))
    ax.imshow(strips, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    for level in histogram.levels:
        ax.axvline(level, color="#000000", linewidth=0.9, linestyle=(0, (4, 3)))
    ax.set_xlim(histogram.low, histogram.high)
    ends = sorted({0, len(strips) - 1})
    ax.set_yticks([end + 0.5 for end in ends], [str(histogram.steps[end]) for end in ends])
    ax.tick_params(labelsize=7)
    ax.grid(visible=False)
    ax.set_title(plain(histogram.layer), fontsize=8)
