"""Layer records of a run, read: layers.csv and histograms.csv."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qat.report.compare.bands import Band, Table, band, series
from qat.report.runs.runs import finite


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHistogram:
    """Latent weights of one layer in units of its scale, at several times.

    Attributes:
        layer: dotted name.
        low: left end of the first bin.
        high: right end of the last bin; the outer bins also count what lies beyond.
        levels: of the grid.
        steps: of the snapshots, completed optimizer steps, rising.
        counts: per snapshot, per bin.
    """

    layer: str
    low: float
    high: float
    levels: tuple[float, ...]
    steps: tuple[int, ...]
    counts: tuple[tuple[float, ...], ...]


def layer_bands(tables: Sequence[Table], quantity: str) -> dict[str, Band]:
    """Bands over runs of one quantity by step, for each layer in the order of the file.

    Args:
        tables: rows of layers.csv of each run.
        quantity: alpha, scale, distance or flip_rate.
    """
    own = [[row for row in rows if row.get("quantity") == quantity] for rows in tables]
    layers = dict.fromkeys(row.get("layer", "") for rows in own for row in rows)
    found = {}
    for layer in layers:
        curves = [
            series([r for r in rows if r.get("layer") == layer], "value", axis="step")
            for rows in own
        ]
        merged = band(curves)
        if merged is not None:
            found[layer] = merged
    return found


def layer_histograms(rows: Table) -> list[LayerHistogram]:
    """Histograms by layer; rows that do not fit each other are left out.

    Args:
        rows: of histograms.csv of one run.
    """
    members: dict[str, list[LayerHistogram]] = {}
    for row in rows:
        snapshot = _snapshot(row)
        if snapshot is not None:
            members.setdefault(snapshot.layer, []).append(snapshot)
    return [_stacked(own) for own in members.values()]


def _snapshot(row: Mapping[str, str]) -> LayerHistogram | None:
    low, high, step = (finite(row.get(key, "")) for key in ("low", "high", "step"))
    levels = [finite(word) for word in row.get("levels", "").split()]
    counts = [finite(word) for word in row.get("counts", "").split()]
    if low is None or high is None or step is None or low >= high or not counts:
        return None
    return LayerHistogram(
        layer=row.get("layer", ""),
        low=low,
        high=high,
        levels=tuple(level for level in levels if level is not None),
        steps=(int(step),),
        counts=(tuple(count or 0.0 for count in counts),),
    )


def _stacked(snapshots: Sequence[LayerHistogram]) -> LayerHistogram:
    first = snapshots[0]
    alike = [
        snapshot
        for snapshot in snapshots
        if (snapshot.low, snapshot.high) == (first.low, first.high)
        and len(snapshot.counts[0]) == len(first.counts[0])
    ]
    return LayerHistogram(
        layer=first.layer,
        low=first.low,
        high=first.high,
        levels=first.levels,
        steps=tuple(snapshot.steps[0] for snapshot in alike),
        counts=tuple(snapshot.counts[0] for snapshot in alike),
    )
