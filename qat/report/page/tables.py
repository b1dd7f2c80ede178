"""Report tables: as texts for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from qat.report.compare.comparison import Claim, Row
from qat.report.compare.statistics import mean
from qat.report.compare.wording import (
    NOTHING,
    between,
    duration,
    grouped,
    inside,
    points,
    probability,
    spread,
    text,
    with_unit,
)
from qat.report.page.html import TextTable
from qat.report.runs.grouping import Group
from qat.report.runs.labels import quant_name, shown
from qat.report.runs.runs import Run, finite

_COMPARISON: tuple[str, ...] = (
    *("network", "seeds", "test accuracy, %", "95 % interval", "difference"),
    *("its 95 % interval", "p", "reading", "validation, %"),
)
_COST = ("network", "bits per weight", "bytes", "smaller than float", "bit operations", "time")
_STATES = {
    "running": "running, or killed before it could say so",
    "waiting": "waiting for its teacher",
}


def comparison_table(rows: Sequence[Row], *, caption: str) -> TextTable:
    """Accuracies with their spread, and what the differences to the reference are worth."""
    cells = tuple(_comparison_cells(row) for row in rows)
    return TextTable(caption=caption, head=_COMPARISON, rows=cells)


def claim_table(claims: Sequence[Claim]) -> TextTable:
    """What the seeds say of each claim."""
    cells = tuple(
        (
            f"{claim.better} > {claim.worse}",
            NOTHING if claim.difference is None else str(claim.difference.n),
            NOTHING if claim.difference is None else points(claim.difference.mean),
            between(claim.difference.interval if claim.difference else None),
            NOTHING if claim.p is None else probability(claim.p),
            claim.reading,
        )
        for claim in claims
    )
    head = ("claim", "seeds", "difference", "its 95 % interval", "p", "reading")
    caption = (
        "Claims, tested together: test accuracy of the first network minus the second's, in "
        "percentage points, paired by seed."
    )
    return TextTable(caption=caption, head=head, rows=cells)


def cost_table(rows: Sequence[Row], *, key: str | None) -> TextTable:
    """Bits, bytes, bit operations and time of each group.

    Args:
        rows: of a comparison.
        key: that was tuned; None for none.
    """
    tried = (f"{key}, of how many",) if key else ()
    cells = []
    for row in rows:
        own, full = row.cost("bytes"), row.cost("float_bytes")
        ratio = f"{full / own:.1f} times" if own and full else NOTHING
        seconds = row.cost("wall_seconds")
        time = NOTHING if seconds is None else duration(seconds)
        bits = row.cost("bits")
        cells.append(
            (
                *(row.group.label, NOTHING if bits is None else f"{bits:.3g}"),
                *(grouped(own), ratio, with_unit(row.cost("bops")), time),
                *((_tried(row.group, key),) if key else ()),
            )
        )
    caption = "What each network costs, and how long a run took on average."
    return TextTable(caption=caption, head=(*_COST, *tried), rows=tuple(cells))


def layer_table(group: Group, values: Mapping[str, Mapping[str, float]]) -> TextTable | None:
    """What each layer of the network holds; None if the runs tell nothing of it.

    Args:
        group: of runs; the scale is the mean over them, the rest the first one's.
        values: column -> layer -> number, of what was recorded while training.
    """
    audits = [_audit(run) for run in group.finished]
    if not audits or not audits[0]:
        return None
    head = ("layer", "weights", "bits", "grid", "levels", "scale", "input bits", "MACs", *values)
    rows = []
    for index, layer in enumerate(audits[0]):
        scales = [finite(a[index].get("scale")) for a in audits if len(a) > index]
        known = [scale for scale in scales if scale is not None]
        name = text(layer.get("name"))
        extra = [column.get(name) for column in values.values()]
        rows.append(
            (
                *(name, grouped(finite(layer.get("weights")))),
                *(text(layer.get(key)) for key in ("weight_bits", "grid", "levels")),
                f"{mean(known):.4g}" if known else NOTHING,
                *(text(layer.get("input_bits")), grouped(finite(layer.get("macs")))),
                *(NOTHING if value is None else f"{value:.3g}" for value in extra),
            )
        )
    return TextTable(caption=f"Layers of {group.label}.", head=head, rows=tuple(rows))


def problem_table(runs: Sequence[Run]) -> TextTable:
    """Runs that did not come to an end, with the reason that they left."""
    rows = tuple(
        (
            *(run.name, quant_name(run) if run.config else NOTHING),
            *(str(run.seed) if run.config else NOTHING, _STATES.get(run.state, run.state)),
            run.error or NOTHING,
        )
        for run in runs
    )
    head = ("run", "network", "seed", "state", "reason")
    caption = "Runs that are not in any table or figure above."
    return TextTable(caption=caption, head=head, rows=rows, numeric=False)


def _comparison_cells(row: Row) -> tuple[str, ...]:
    ended, begun = len(row.group.finished), len({run.seed for run in row.group.runs})
    found, gap = row.test, row.difference
    return (
        row.group.label,
        str(ended) if ended == begun else f"{ended} of {begun}",
        spread(found),
        inside(found.interval if found else None),
        NOTHING if gap is None else points(gap.mean),
        between(gap.interval if gap else None),
        NOTHING if row.p is None else probability(row.p),
        row.verdict,
        spread(row.validation),
    )


def _tried(group: Group, key: str) -> str:
    end = ", at the end of the range" if group.is_at_end(key) else ""
    return f"{shown(group.runs[0].config.get(key))} of {group.tried}{end}"


def audit_rows(run: Run) -> list[Mapping[str, Any]]:
    """The products of a run's audit that can be drawn, in the order of execution."""
    numbers = ("macs", "weight_bits", "input_bits")
    return [row for row in _audit(run) if all(isinstance(row.get(n), int) for n in numbers)]


def _audit(run: Run) -> list[Mapping[str, Any]]:
    layers = run.value("audit")
    found = layers if isinstance(layers, list) else []
    return [layer for layer in found if isinstance(layer, Mapping)]
