"""Figures: in the house style, the same file for the same numbers, nothing outside the picture."""

import pytest
import torch

from qat.functional.stairs import relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES
from qat.report.figures.estimators import draw_estimators
from qat.report.figures.sheet_of_samples import draw_samples
from qat.report.figures.style import panels, save_figure
from qat.report.figures.theory import FIGURES
from qat.theory.laboratory import EXPERIMENTS
from support.figures import cut_axes


@pytest.mark.parametrize("stairs", [None, relu_stairs(2), signed_stairs(3)])
def test_every_estimator_has_a_panel(stairs):
    figure = draw_estimators(stairs)
    titles = [ax.get_title() for ax in figure.axes if ax.lines]
    assert titles == list(DERIVATIVES)
    legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert legend[:2] == ["forward pass", "coarse derivative"]
    assert cut_axes(figure) == []  # the peaks of a schedule's end among them


def test_every_experiment_has_a_figure():
    assert set(FIGURES) == set(EXPERIMENTS)


def test_samples_are_in_rows_with_captions():
    pictures = [(torch.full((3, 4, 4), level), f"{level}") for level in (0.25, 1.5)]
    figure = draw_samples({"one": pictures, "two": pictures[::-1]})
    assert [ax.get_ylabel() for ax in figure.axes] == ["one", "", "two", ""]
    assert [ax.get_xlabel() for ax in figure.axes] == ["0.25", "1.5", "1.5", "0.25"]
    shown = [float(ax.images[0].get_array().max()) for ax in figure.axes]
    assert shown == [0.25, 1, 1, 0.25]


def test_the_same_numbers_give_the_same_files(tmp_path):
    files = []
    for name in ("a", "b"):
        with panels(1, 2) as (figure, axes):
            axes[0, 0].plot([0, 1], [2, 3], label="line")
            axes[0, 0].legend()
        files.append(save_figure(figure, tmp_path / name / "x.png"))
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert [path.suffix for path in files[0]] == [".png", ".svg"]


def test_the_style_stays_inside():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with panels() as (_, axes):
        assert axes.shape == (1, 1)
        assert mpl.rcParams["legend.frameon"] is False
    assert dict(mpl.rcParams) == before
