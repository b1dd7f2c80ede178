"""The cost of feature affinity: exponents, tables, figure, and a small run of the script."""

import csv
import importlib
import math
import sys

import pytest
import torch
from affinity_figure import draw_affinity
from affinity_table import AffinityCost, GradientAgreement, affinity_report, exponents

from qat.functional.affinity.feature_affinity import feature_affinity
from support import ROOT
from support.real_run import train


def cost(method, channels, side, ms):
    return AffinityCost(method=method, channels=channels, side=side, ms=ms, mb=2.0)


def power_law(method, p, q, *, widths=(16, 64), sides=(16, 32, 56)):
    return [cost(method, c, s, 1e-3 * (s * s) ** p * c**q) for c in widths for s in sides]


AGREEMENTS = [
    GradientAgreement(columns=k, channels=64, side=16, ms=1.0, cosine=c, spread=0.01)
    for k, c in ((15, 0.25), (64, 0.5))
]


def test_exponents_of_a_power_law():
    small = cost("a", 16, 8, 100.0)  # below 256 positions: left out
    assert exponents([small, *power_law("a", 2, 0.5)]) == pytest.approx((2, 0.5))
    p, q = exponents(power_law("a", 1.5, 1, widths=(64,)))
    assert p == pytest.approx(1.5)
    assert math.isnan(q)
    p, q = exponents(power_law("a", 1.5, 1, sides=(32,)))
    assert math.isnan(p)
    assert q == pytest.approx(1)
    assert all(map(math.isnan, exponents(power_law("a", 1, 1, widths=(16,), sides=(32,)))))


def test_report():
    costs = [*power_law("slow", 2, 1), *power_law("quick", 1, 1)]
    text = affinity_report(costs, AGREEMENTS, title="What", ratio=("slow", "quick"))
    lines = text.splitlines()
    assert lines[0] == "What"
    assert "| 16 | 16 | 1.05e+03 / 2 | 4.1 / 2 | 256.0 | quick |" in lines
    assert "| slow | 2.00 | 1.00 |" in lines
    assert "| 64 | 16 | 64 | 1 | 0.500 | 0.010 |" in lines
    assert "ratio: slow over quick" in lines


def test_figure():
    costs = [*power_law("slow", 2, 1), *power_law("quick", 1, 1)]
    figure = draw_affinity(costs, AGREEMENTS)
    titles = [ax.get_title() for ax in figure.axes if ax.lines]
    assert titles == ["time, C = 16", "time, C = 64", "gradient of FFA"]
    first, _, last = (ax for ax in figure.axes if ax.lines)
    assert [list(line.get_xdata()) for line in first.lines] == [[256, 1024, 3136]] * 2
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["256", "1024", "3136"]
    assert list(last.lines[0].get_ydata()) == [0.25, 0.5]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["slow", "quick"]
    assert len([ax for ax in draw_affinity(costs[:1], []).axes if ax.lines]) == 1


@pytest.fixture
def script():
    threads = torch.get_num_threads()
    yield importlib.import_module("affinity")
    torch.set_num_threads(threads)
    sys.modules.pop("affinity")


def test_a_small_run(script, monkeypatch, tmp_path, capsys):
    small = {"CHANNELS": (2, 3), "SIDES": (2, 3, 50), "SECONDS": 0.0}
    for name, value in {**small, "AGREEMENT_SHAPES": ((3, 4),)}.items():
        monkeypatch.setattr(script, name, value)
    script.main(["batch=2", "threads=1", f"out={tmp_path}"])
    costs = list(csv.DictReader((tmp_path / "affinity.csv").open()))
    assert {(row["channels"], row["side"]) for row in costs} == {(c, s) for c in "23" for s in "23"}
    assert {row["method"] for row in costs} == set(script.METHODS)
    assert all(float(row["ms"]) > 0 and float(row["mb"]) > 0 for row in costs)
    cosines = list(csv.DictReader((tmp_path / "gradient.csv").open()))
    assert [row["columns"] for row in cosines] == ["15", "64", "256"]
    assert all(0 < float(row["cosine"]) <= 1 for row in cosines)
    assert (tmp_path / "affinity.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "affinity.png").read_bytes().startswith(b"\x89PNG")


def test_the_baseline_of_the_script_is_the_same_loss(script):
    s, t = torch.randn(2, 2, 5, 3, 3, dtype=torch.float64).unbind()
    torch.testing.assert_close(script.matrix_affinity(s, t), feature_affinity(s, t))


def test_peak_bytes(script):
    x, y = torch.randn(1000, requires_grad=True), torch.randn(1000)
    held = lambda x, y: (2 * (2 * (x + y))).sum()  # noqa: E731 - at most two maps live at a time
    assert 8000 <= script.peak_bytes(held, x, y) <= 8100
    large = lambda x, y: (x[:, None] * y).square().sum()  # noqa: E731
    assert script.peak_bytes(large, x, y) >= 2 * 4 * 1000**2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["full"], ["full", "key=value"]),
        (["batch=0"], ["batch", "0"]),
        (["out=/dev/null/x"], ["/dev/null/x", "another folder"]),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, words):
    said = train(*arguments, cwd=ROOT, code=2, script=ROOT / "scripts" / "affinity.py")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
