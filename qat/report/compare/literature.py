"""Published results, for pictures that say whose setting it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.report.compare.comparison import Row
from qat.report.compare.pareto import Point
from qat.report.runs.grouping import Family
from qat.report.runs.identity import judged_on, title_of
from qat.spec.schema import option, read

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
        ends: the first and last layer, where the source tells: quantized as the others, float, ...
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
    entries of bits that we did not run are left out rather than placed by guess. Those with both
    ends quantized stand beside ours of such ends only, all others beside ours of float ends; the
    label tells what they do at the ends.

    Args:
        family: of runs.
        rows: its comparison.
        cost: key of summary.json, e.g. bytes.
        known: entries; None for all that are published.
    """
    found = []
    config = family.groups[0].runs[0].config
    if judged_on(config):  # test images of its own
        return []
    for entry in published() if known is None else known:
        costs = [row.cost(cost) for row in rows if _is_alike(row, entry)]
        place = next((cost for cost in costs if cost is not None), None)
        if f"{entry.data}, {entry.model}" == title_of(config) and place is not None:
            ends = f"ends {entry.ends or 'unknown'}"
            label = f"{entry.method} W{entry.w}A{entry.a}, {ends}"
            found.append(Point(label, place, entry.top1 / 100, entry.source))
    return found


def _is_alike(row: Row, entry: Published) -> bool:
    """Whether our network has an entry's bits, and its first and last layer as far as they go."""
    config = row.group.runs[0].config
    bits = config.get("quant.weight.bits"), config.get("quant.activation.bits")
    ends = {config.get(f"quant.ends.{end}") for end in ("first", "last")}
    own = "quantized" if entry.ends == "quantized" else "float"
    return bits == (entry.w, entry.a) and ends == {own}
