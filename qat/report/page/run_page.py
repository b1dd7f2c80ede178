"""Run page: what a single run reached, how it learned, what its layers did."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.errors import percent
from qat.report.compare.wording import NOTHING, duration
from qat.report.figures.diagnostics import save_diagnostics
from qat.report.figures.network import draw_network
from qat.report.page.curve_section import curve_pictures
from qat.report.page.files_section import files_section
from qat.report.page.group_section import group_section
from qat.report.page.html import Details, Gallery, Paragraph, Section, TextTable, page
from qat.report.page.pictures import Pictures
from qat.report.page.tables import audit_rows
from qat.report.runs.grouping import Group
from qat.report.runs.labels import quant_name, shown
from qat.report.runs.runs import Run, read_run
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_json

_log = logging.getLogger(__name__)
_STATES = {
    "warm_start": "float warm start",
    "last": "last epoch",
    "selected": "selected on validation",
}
_COLUMNS = {
    "val_acc": "validation accuracy, %",
    "val_agreement": "agreement with the teacher, %",
    "test_acc": "test accuracy, %",
    "test_loss": "test loss",
}


def write_run_report(folder: Path) -> Path | None:
    """Write RUN/report.html, and the figure of its diagnostics, from what the run has left.

    Nothing that goes wrong here may harm a run that has just finished: a failure is one line of
    warning, and None is returned.

    Args:
        folder: run folder; its summary.json must be there.
    """
    path = folder / "report.html"
    with _warned("figure of the diagnostics"):
        occupancy = read_json(folder / "summary.json").get("occupancy")
        if occupancy is not None:  # the callback was there
            save_diagnostics(folder, occupancy)
    with _warned("report of the run"):
        write_whole(path, run_page(read_run(folder)))
    return path if path.is_file() else None


@contextmanager
def _warned(what: str) -> Iterator[None]:
    """A block that may fail: whatever it is, the trained network matters more."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        _log.warning("no %s: %s: %s", what, type(error).__name__, reason)


def run_page(run: Run) -> str:
    """HTML of one run, whatever its state.

    Args:
        run: with a summary, or its page says that there is none.
    """
    name = f"{quant_name(run)} on {shown(run.config.get('data.name'))}, seed {run.seed}"
    if run.summary is None:
        reason = f"The run has no summary.json; its state is {run.state}. {run.error or ''}"
        return page(name, [Paragraph(reason, "warning")])
    # status.json is the last file that a run writes, after this page
    group = Group(label=quant_name(run), key="", runs=(replace(run, state="finished"),))
    pictures = Pictures(None)
    curves = curve_pictures([group], pictures, name="run")
    state = "selected" if run.value("selected") else "last"
    sections = [
        Section("Result", [_results(run), _costs(run)]),
        Section("How it learned", [Gallery(curves) if curves else Paragraph("No metrics.csv.")]),
        *_network(run, pictures),
        *files_section(run.folder),
        Section("Layer by layer", group_section(group, pictures, state=state)),
        Section("Config", [Details("All keys of the resolved config", [_config(run)])]),
    ]
    return page(name, [Paragraph(_lead(run))], sections)


def _network(run: Run, pictures: Pictures) -> list[Section]:
    """What the network multiplies, and how much of it on few levels; empty for older runs."""
    rows = audit_rows(run)
    if not rows:
        return []
    weights, products = run.number("quantized_share"), run.number("product_share")
    shares = [
        f"{percent(share)} of the {what}"
        for share, what in (
            (weights, "weights that enter products lie on their grids"),
            (products, "multiplications have both operands on grids"),
        )
        if share is not None
    ]
    picture = pictures.add(
        draw_network(rows),
        "network",
        title="The network.",
        reading="A column for each product, from the image to the logits: its share of the "
        "multiplications above, the bits of its two operands below. Orange is float; the audit "
        "in summary.json names the reason of each.",
    )
    lead = Paragraph(f"{'; '.join(shares)}.") if shares else None
    return [
        Section("What is quantized", [*([lead] if lead else []), Gallery([picture], is_wide=True)])
    ]


def _lead(run: Run) -> str:
    network = shown(run.config.get("model.name", "network"))
    return f"{network}, {run.name}. One run is one seed: compare several with scripts/report.py."


def _results(run: Run) -> TextTable:
    states = [state for state in _STATES if isinstance(run.value(state), Mapping)]
    columns = [c for c in _COLUMNS if any(run.number(state, c) is not None for state in states)]
    rows = tuple(
        (
            *(_STATES[state], _count(run.number(state, "epoch"))),
            *(_cell(run, state, column) for column in columns),
        )
        for state in states
    )
    head = ("weights of", "epoch", *(_COLUMNS[column] for column in columns))
    caption = "Accuracy of the quantized network; the warm start is the float network before it."
    return TextTable(caption=caption, head=head, rows=rows)


def _cell(run: Run, state: str, column: str) -> str:
    value = run.number(state, column)
    if value is None:
        return NOTHING
    return f"{value:.4f}" if column.endswith("loss") else f"{100 * value:.2f}"


def _costs(run: Run) -> TextTable:
    seconds = run.number("wall_seconds")
    cells = (
        ("bits per weight", _count(run.number("bits"))),
        ("bytes, packed", _count(run.number("bytes"))),
        ("bytes as float", _count(run.number("float_bytes"))),
        ("bit operations per image", _count(run.number("bops"))),
        ("optimizer steps", _count(run.number("steps"))),
        ("wall time", NOTHING if seconds is None else duration(seconds)),
        ("device", shown(run.value("device"))),
        ("config hash", shown(run.value("config_hash"))),
    )
    return TextTable(caption="What it costs, and where it ran.", head=("", "value"), rows=cells)


def _config(run: Run) -> TextTable:
    rows = tuple(
        (key, "set by the command" if key in run.changed else "", _option(value))
        for key, value in run.config.items()
    )
    caption = "What the run was asked for; the hash above stands for it."
    return TextTable(caption=caption, head=("key", "", "value"), rows=rows, numeric=False)


def _option(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.6g}" if value < 100 else f"{value:,.0f}"
