"""What others published, for pictures that say whose setting it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.report.comparison import Row
from qat.report.grouping import Family
from qat.report.pareto import Point
from qat.schema import option, read

_FILE = Path(__file__).with_name("literature.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published accuracy.

    Attributes:
        data: data set, by our name.
        model: network, by our name.
        method: as its authors call it.
        w: bits of the weights.
        a: bits of the activations.
        top1: accuracy in %.
        ends: the first and last layer, where the source tells.
        source: where the number was read.
    """

    data: str
    model: str
    method: str
    w: int = option(low=1, high=32)
    a: int = option(low=1, high=32)
    top1: float = option(above=0, below=100)
    ends: str | None = None
    source: str


def published() -> list[Published]:
    """Every entry of literature.yaml."""
    import yaml

    entries: list[Mapping[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [read(Published, entry, f"literature[{i}]") for i, entry in enumerate(entries)]


def points_beside(
    family: Family, rows: Sequence[Row], cost: str, known: Sequence[Published] | None = None
) -> list[Point]:
    """Published accuracies on a family's data and network, at what our network of equal bits costs.

    What others' networks cost is seldom published, and depends on their first and last layers; so
    entries of bits that we did not run are left out rather than placed by guess.

    Args:
        family: of runs.
        rows: its comparison.
        cost: key of summary.json, e.g. bytes.
        known: entries; None for all that are published.
    """
    found = []
    for entry in published() if known is None else known:
        costs = [row.cost(cost) for row in rows if _bits(row) == (entry.w, entry.a)]
        if f"{entry.data}, {entry.model}" == family.title and costs and costs[0] is not None:
            label = f"{entry.method} W{entry.w}A{entry.a}"
            found.append(Point(label, costs[0], entry.top1 / 100, entry.source))
    return found


def _bits(row: Row) -> tuple[Any, Any]:
    config = row.group.runs[0].config
    return config.get("quant.weight.bits"), config.get("quant.activation.bits")
