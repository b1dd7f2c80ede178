"""Curve section: learning curves and costs of groups as pictures."""

from collections.abc import Sequence

from qat.report.compare.bands import Axis, band_of
from qat.report.compare.comparison import Row
from qat.report.compare.pareto import Point
from qat.report.figures.cost import draw_cost
from qat.report.figures.curves import LINE_COLORS, MOST_LINES, draw_bands, late_of, limits_of
from qat.report.page.html import Picture
from qat.report.page.pictures import Pictures
from qat.report.runs.grouping import Group
from qat.report.runs.runs import Run, finite

_SEEDS = "Lines are means over the seeds, bands ± one standard deviation."
_WARM = "Before the dotted line the network is still float."
_ENLARGED = "The lower panel enlarges the box in the upper one."
# title, column, axis, y axis, scale, how to read it
_CURVES: tuple[tuple[str, str, Axis, str, float, str], ...] = (
    ("Validation accuracy", "val/acc", "epoch", "accuracy (%)", 100.0, ""),
    ("Agreement with the teacher", "val/agreement", "epoch", "agreement (%)", 100.0, ""),
    ("Training loss", "train/loss", "epoch", "loss", 1.0, "Lower is better."),
    (
        *("Flip rate", "quant/flip_rate", "step", "share of weights per step", 1.0),
        "The share of weights that change their level in a step; training settles as it falls.",
    ),
    (
        *("Distance to the grid", "quant/distance", "step", "||w - Q(w)|| / ||w||", 1.0),
        "How far the latent weights lie from their levels; 0 is on the grid.",
    ),
)


def curve_pictures(groups: Sequence[Group], pictures: Pictures, *, name: str) -> list[Picture]:
    """Every curve that the runs have; many groups are spread over several pictures.

    Args:
        groups: the reference first, which every picture shows.
        pictures: where figures go.
        name: that files begin with.
    """
    tables = {group.label: [run.rows() for run in group.finished] for group in groups}
    found = []
    for title, column, axis, ylabel, scale, reading in _CURVES:
        bands = {label: band_of(own, column, axis=axis) for label, own in tables.items()}
        known = {label: band for label, band in bands.items() if band and band.places}
        parts = [[lb for lb in part if lb in known] for part in _chunks(list(tables))]
        parts = [part for part in parts if part]
        begin = _begin(groups) if axis == "epoch" else None
        late = late_of(known.values(), begin) if known and axis == "epoch" else None
        for number, part in enumerate(parts, 1):
            figure = draw_bands(
                {label: known[label] for label in part},
                xlabel="optimizer step" if axis == "step" else axis,
                ylabel=ylabel,
                scale=scale,
                begin=begin,
                limits=limits_of(known.values()),
                late=late,
                colors=_colors(list(tables)),
            )
            count = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            seeds = [_SEEDS] if any(known[label].n > 1 for label in part) else []
            more = [*([_WARM] if begin else []), *([_ENLARGED] if late else [])]
            words = " ".join(filter(None, [*seeds, reading, *more]))
            own = {"title": f"{title}{count}.", "reading": words}
            found.append(pictures.add(figure, f"{name}-{column}", **own))
    return found


def cost_pictures(
    rows: Sequence[Row], pictures: Pictures, *, name: str, others: Sequence[Point] = ()
) -> list[Picture]:
    """Test accuracy against bytes and against bit operations.

    Args:
        rows: of a comparison.
        pictures: where figures go.
        name: that files begin with.
        others: points of the literature against bytes.
    """
    found = []
    for key, xlabel, title in (
        ("bytes", "bytes of the packed network", "Accuracy against size."),
        ("bops", "bit operations per image", "Accuracy against work."),
    ):
        costs = {row.group.label: row.cost(key) for row in rows if row.test}
        points = [
            Point(row.group.label, cost, row.test.mean)
            for row in rows
            if row.test and (cost := costs[row.group.label])
        ]
        if len(points) < 2:
            continue
        bars = {r.group.label: r.test.interval for r in rows if r.test and r.test.interval}
        figure = draw_cost(
            points, xlabel=xlabel, intervals=bars, others=others if key == "bytes" else ()
        )
        reading = (
            "Up and left is better. No network beats one on the dashed front in both; bars are "
            "95 % intervals of the mean. Networks of equal cost stand side by side."
        )
        found.append(pictures.add(figure, f"{name}-{key}", title=title, reading=reading))
    return found


def _begin(groups: Sequence[Group]) -> float | None:
    """The epoch after which all quantized groups are quantized; None if they differ."""
    begins = {_warm(group.runs[0]) for group in groups if not group.is_float}
    begin = begins.pop() if len(begins) == 1 else None
    return begin or None


def _warm(run: Run) -> float | None:
    return finite(run.config.get("warm_start.epochs"))


def _chunks(labels: Sequence[str]) -> list[list[str]]:
    """As many labels as there are colours; the first one is in every part."""
    if len(labels) <= MOST_LINES:
        return [list(labels)]
    first, rest, size = labels[0], labels[1:], MOST_LINES - 1
    return [[first, *rest[at : at + size]] for at in range(0, len(rest), size)]


def _colors(labels: Sequence[str]) -> dict[str, str]:
    """The same colour for a group in every picture."""
    return {
        label: color
        for part in _chunks(labels)
        for label, color in zip(part, LINE_COLORS, strict=False)
    }
