"""The figure of the diagnostics: every metric shown, in its range, files written."""

import pytest

from qat.report.figures.diagnostics import METRICS, draw_diagnostics, read_rows
from qat.report.figures.style import save_figure
from qat.report.page.run_page import write_run_report

ROWS = [
    {"step": str(step), "val/acc": "", **{name: repr(0.9 - step / 1000) for name in METRICS}}
    for step in (100, 200, 300)
]


def lines_of(figure):
    return {line.get_label(): line for ax in figure.axes for line in ax.lines}


def texts_of(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_every_metric_is_shown():
    figure = draw_diagnostics([{"step": "17", "val/acc": "0.5"}, *ROWS], [0, 0, 3, 0, 97])
    lines = lines_of(figure)
    assert set(lines) == set(METRICS.values())
    for line in lines.values():
        assert list(line.get_xdata()) == [100, 200, 300]
        assert list(line.get_ydata()) == pytest.approx([0.8, 0.7, 0.6])
    shown = [t.get_text() for ax in figure.axes if ax.lines for t in ax.get_legend().get_texts()]
    assert sorted(shown) == sorted(METRICS.values())
    assert [bar.get_height() for bar in figure.axes[-1].patches] == [0, 0, 0.03, 0, 0.97]
    assert texts_of(figure) == []


def test_all_values_lie_inside_their_axes():
    rows = [{"step": "5", **dict.fromkeys(METRICS, "1.0")}, {"step": "6", "quant/distance": "0.2"}]
    for ax in draw_diagnostics(rows).axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for line in ax.lines:
            assert all(left < x < right for x in line.get_xdata())
            assert all(low <= y <= high for y in line.get_ydata())


def test_what_was_not_measured_is_named():
    rows = [{"step": "5", "quant/gradient_cosine": "0.5"}]
    assert texts_of(draw_diagnostics(rows)) == ["not measured"] * 4
    assert texts_of(draw_diagnostics([])) == ["not measured"] * 5


@pytest.mark.parametrize("rows", [ROWS, [{"step": "50", "quant/distance": "0.1"}], []])
def test_legends_do_not_overlap_and_files_are_written(rows, tmp_path):
    figure = draw_diagnostics(rows, [0, 1, 9])
    figure.canvas.draw()
    legends = [ax.get_legend().get_window_extent() for ax in figure.axes if ax.get_legend()]
    assert len(legends) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(legends) for b in legends[:i])
    width, height = figure.canvas.get_width_height()
    for box in legends:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for path in save_figure(figure, tmp_path / "diagnostics"):
        assert path.stat().st_size > 1000


def test_rows_are_those_of_the_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,quant/occupancy\n5,\n6,0.5\n")
    rows = read_rows(tmp_path / "metrics.csv")
    assert rows == [
        {"step": "5", "quant/occupancy": ""},
        {"step": "6", "quant/occupancy": "0.5"},
    ]


@pytest.mark.parametrize("error", [ValueError("of a kind\nand more"), OSError("disk full")])
def test_a_figure_that_cannot_be_drawn_is_one_warning(tmp_path, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    (tmp_path / "metrics.csv").write_text("step,quant/occupancy\n5,0.5\n")
    (tmp_path / "summary.json").write_text('{"occupancy": [0, 1]}')
    monkeypatch.setattr("qat.report.figures.diagnostics.save_figure", fail)
    assert write_run_report(tmp_path) == tmp_path / "report.html", "the page does not depend on it"
    (line,) = [m for m in caplog.messages if "figure" in m]
    assert str(error).splitlines()[0] in line
    assert "\n" not in line
