"""Files of a run: what it was exported as, how large, how right and how fast each is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qat.report.compare.wording import NOTHING
from qat.report.page.html import Paragraph, Section, TextTable
from qat.report.runs.runs import finite
from qat.storage.exported import exported_files

_PARTS = ("validation", "test")


def files_section(run: Path) -> list[Section]:
    """Bytes, accuracy and latency of the files in RUN/export; empty if there are none."""
    files = exported_files(run / "export")
    if not files:
        return []
    batches = sorted({row["batch"] for entry in files.values() for row in _latency(entry)})
    head = (
        *("file", "bytes", "smaller than float", "validation, %", "test, %"),
        *("other predictions than the run's", *(f"ms, batch {batch}" for batch in batches)),
    )
    rows = tuple((name, *_cells(entry, batches)) for name, entry in sorted(files.items()))
    caption = "Exported files; in brackets, time in relation to the float network's by onnxruntime."
    return [
        Section(
            "Files",
            [
                TextTable(caption=caption, head=head, rows=rows),
                *(Paragraph(text) for text in _slow(files)),
                *(Paragraph(text, "note") for text in _origins(files)),
            ],
        )
    ]


def _cells(entry: Mapping[str, Any], batches: list[int]) -> Iterator[str]:
    size, whole = finite(entry.get("bytes")), finite(entry.get("float_bytes"))
    yield NOTHING if size is None else f"{size:,.0f}"
    yield f"{whole / size:.1f} times" if size and whole else NOTHING
    for part in _PARTS:
        value = finite(_inner(entry, "accuracy").get(part))
        yield NOTHING if value is None else f"{100 * value:.2f}"
    differ = [_inner(entry, "differ").get(part) for part in _PARTS]
    pairs = [pair for pair in differ if isinstance(pair, list) and len(pair) == 2]
    yield " + ".join(f"{count} of {total}" for count, total in pairs) or NOTHING
    times = {row["batch"]: row for row in _latency(entry)}
    for batch in batches:
        row = times.get(batch)
        yield NOTHING if row is None else f"{1e3 * row['fastest']:.3g} ({_ratio(row):.2f})"


def _slow(files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What does not pay."""
    for name, entry in sorted(files.items()):
        slow = [row["batch"] for row in _latency(entry) if _ratio(row) >= 1]
        if slow:
            batches = " and ".join(map(str, sorted(slow)))
            yield f"{name} is small, but no faster than the float network at batch {batches}."


def _origins(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the times were measured, each once."""
    found = {
        f"Times: fastest of {row.get('rounds')} passes in turn with the float network, onnxruntime "
        f"{row.get('onnxruntime')}, {row.get('threads')} threads, {row.get('processor')}."
        for entry in files.values()
        for row in _latency(entry)
    }
    return sorted(found) or ["Times are measured by: python scripts/latency.py run=RUN"]


def _ratio(row: Mapping[str, Any]) -> float:
    return float(row["fastest"]) / float(row["float"])


def _latency(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows that hold what they should."""
    rows = entry.get("latency")
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping)
        and isinstance(row.get("batch"), int)
        and (finite(row.get("fastest")) or 0) > 0
        and (finite(row.get("float")) or 0) > 0
    ]


def _inner(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, Mapping) else {}
