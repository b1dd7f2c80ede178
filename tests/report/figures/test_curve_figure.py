"""Learning curves: the drop at the switch and the small differences at the end, both to be seen."""

import pytest

from qat.report.compare.bands import Band
from qat.report.figures.curves import draw_bands, late_of, limits_of
from qat.report.page.curve_section import curve_pictures
from qat.report.page.pictures import Pictures
from qat.report.runs.grouping import families_of
from qat.report.runs.runs import read_run
from support.figures import cut_axes

# eight float epochs, the drop, and what quantized training gets back
LEARNED = (0.2, 0.6, 0.9, 0.95, 0.96, 0.97, 0.97, 0.97)
TORN = (0.3, 0.5, 0.7, 0.85, 0.92, 0.94, 0.95, 0.955, 0.95, 0.96, 0.955, 0.96)
BEGIN = len(LEARNED)


def band_of(means, spread=0.01):
    places = tuple(range(1, len(means) + 1))
    return Band(places=places, means=tuple(means), spreads=(spread,) * len(means), n=2)


BANDS = {"a": band_of(LEARNED + TORN), "b": band_of((*LEARNED, 0.1, *TORN[1:]))}


class Kept(Pictures):
    """Keeps the figures that a page shows."""

    def __init__(self):
        super().__init__(None)
        self.figures = {}

    def add(self, figure, name, **words):
        self.figures[words["title"]] = figure, words["reading"]
        return super().add(figure, name, **words)


def drawn(bands, begin=BEGIN):
    late = late_of(bands.values(), begin)
    return draw_bands(bands, xlabel="epoch", ylabel="%", scale=100.0, begin=begin, late=late)


def test_the_whole_range_is_shown_and_the_end_again_enlarged():
    figure = drawn(BANDS)
    assert cut_axes(figure) == []
    whole, end = figure.axes
    places = [list(line.get_xdata()) for line in whole.lines[:2]]
    assert places == [list(range(1, 21))] * 2
    assert whole.get_ylim()[0] < 9 < 98 < whole.get_ylim()[1]  # of the drop, less its spread
    assert [list(line.get_xdata()) for line in end.lines] == [list(range(14, 21))] * 2
    assert end.get_ylim()[0] > 90
    (box,) = whole.patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == pytest.approx(
        end.viewLim.bounds, rel=1e-6
    )


@pytest.mark.parametrize(
    "means",
    [
        LEARNED + TORN[:4],  # the end takes a large part of the axis
        (0.1, 0.9, 0.91),  # too few to enlarge
        (0.5,),
    ],
)
def test_one_panel_where_it_shows_all(means):
    figure = drawn({"a": band_of(means)}, begin=None)
    assert len(figure.axes) == 1
    assert cut_axes(figure) == []


def test_the_second_half_is_that_of_the_quantized_phase():
    assert late_of([BANDS["a"]], BEGIN).begin == (8 + 20) / 2
    assert late_of([band_of(LEARNED)]).begin == (1 + 8) / 2
    assert late_of([BANDS["a"]]) is None  # the drop lies in the second half of all training
    low, high = limits_of(BANDS.values())
    assert low < 0.09
    assert high > 0.98


def test_no_curve_of_a_page_is_cut(make_run):
    runs = [
        make_run(
            f"{quant}{seed}", quant=quant, seed=seed, curve=curve, changes={"warm_start.epochs": 8}
        )
        for seed in (1, 2)
        for quant, curve in (("float", LEARNED + (0.97,) * 12), ("bcgd_w1a4", LEARNED + TORN))
    ]
    (family,) = families_of([read_run(folder) for folder in runs])
    pictures = Kept()
    curve_pictures(family.groups, pictures, name="x")
    assert {title: cut_axes(figure) for title, (figure, _) in pictures.figures.items()} == {
        "Validation accuracy.": [],
        "Training loss.": [],
        "Flip rate.": [],
    }
    figure, reading = pictures.figures["Validation accuracy."]
    assert len(figure.axes) == 2
    assert reading.endswith("The lower panel enlarges the box in the upper one.")
