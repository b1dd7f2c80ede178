"""layers.csv and histograms.csv: read by layer, drawn against the grid."""

import pytest

from qat.report.compare.layers import layer_bands, layer_histograms
from qat.report.figures.confusion import confusion_of, draw_confusion, summed
from qat.report.figures.layers import draw_histograms, draw_layers, spread_out
from qat.report.page.group_section import worst_confusions


def row(step, layer, quantity, value):
    return {"step": str(step), "layer": layer, "quantity": quantity, "value": str(value)}


def snapshot(step, counts, layer="conv1", low=-2, high=2, levels="-1.0 1.0"):
    row = {"step": str(step), "layer": layer, "low": str(low), "high": str(high)}
    return {**row, "levels": levels, "counts": " ".join(map(str, counts))}


def test_bands_are_by_layer_and_quantity_in_the_order_of_the_file():
    one = [row(10, "z", "alpha", 1), row(10, "a", "alpha", 5), row(20, "z", "alpha", 2)]
    other = [row(10, "z", "alpha", 3), row(20, "z", "alpha", 4), row(20, "z", "scale", 9)]
    found = layer_bands([one, other], "alpha")
    assert list(found) == ["z", "a"]
    assert (found["z"].places, found["z"].means, found["z"].n) == ((10, 20), (2, 3), 2)
    assert (found["a"].means, found["a"].n) == ((5,), 1)
    assert layer_bands([one, []], "distance") == {}


def test_histograms_are_stacked_by_layer():
    rows = [snapshot(8, [1, 2, 3]), snapshot(8, [4, 5], layer="fc"), snapshot(20, [3, 2, 1])]
    first, second = layer_histograms(rows)
    assert (first.layer, first.steps, first.counts) == ("conv1", (8, 20), ((1, 2, 3), (3, 2, 1)))
    assert first.levels == (-1, 1)
    assert (second.layer, second.counts) == ("fc", ((4, 5),))


BROKEN = [
    snapshot("x", [1]),
    snapshot(1, []),
    snapshot(1, [1], low=2),
    snapshot(1, [1], high="nan"),
    {"layer": "a"},
]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_snapshots_are_left_out(broken):
    assert layer_histograms([broken]) == []
    (found,) = layer_histograms([snapshot(1, [1, 2]), broken, snapshot(2, [1, 2, 3])])
    assert found.steps == (1,)


def test_every_layer_has_a_line_and_few_layers_a_histogram():
    bands = layer_bands(
        [[row(s, f"l{i}", "alpha", i + s) for s in (1, 2) for i in range(9)]], "alpha"
    )
    (ax,) = draw_layers(bands, ylabel="alpha").axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[i + 1, i + 2] for i in range(9)]
    histograms = layer_histograms([snapshot(1, [1, 0], layer=f"l{i}") for i in range(20)])
    shown = spread_out(histograms)
    assert [h.layer for h in shown] == ["l0", "l4", "l8", "l11", "l15", "l19"]
    axes = draw_histograms(shown).axes
    assert [ax.get_title() for ax in axes] == [h.layer for h in shown]
    for ax in axes:
        assert [line.get_xdata()[0] for line in ax.lines] == [-1, 1]
        assert ax.images[0].get_extent() == [-2, 2, 0, 1]


def test_an_odd_number_of_histograms_fills_the_page():
    histograms = layer_histograms([snapshot(1, [0, 0], layer=f"l{i}") for i in range(3)])
    axes = draw_histograms(histograms).axes
    assert [bool(ax.images) for ax in axes] == [True, True, True, False]
    assert [ax.get_xlabel() for ax in axes[:3]] == ["", *["latent weight / scale"] * 2]


def test_confusions_add_up():
    total = summed([[[1.0, 2.0], [0.0, 3.0]], [[4.0, 0.0], [1.0, 1.0]]])
    assert total == [[5, 2], [1, 4]]
    assert worst_confusions(total, ["cat", "dog"]) == "Most often cat was taken for dog: 2 of 7."
    assert worst_confusions(total, []) == "Most often 0 was taken for 1: 2 of 7."
    assert worst_confusions([[3, 0], [0, 0]], []) == "No mistakes."
    figure = draw_confusion(total, ["cat", "dog"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2", "4", "5"]


@pytest.mark.parametrize(
    "value", [None, [], {}, "x", [[1, 2]], [[1], 2], [[1, "x"], [0, 1]], [[1, -1], [0, 1]]]
)
def test_what_is_no_matrix_is_not_drawn(value):
    assert confusion_of(value) is None


def test_many_classes_are_drawn_without_numbers():
    matrix = [[float(i == j) for j in range(40)] for i in range(40)]
    assert not draw_confusion(matrix, [str(i) for i in range(40)]).axes[0].texts


def drawn_axes(names):
    matrix = [[float(i == j) for j in range(len(names))] for i in range(len(names))]
    (ax,) = draw_confusion(matrix, names).axes
    return ax.xaxis, ax.yaxis


@pytest.mark.parametrize(
    "names",
    [
        ["a b", "a  b", "0 a b"],
        ["1 a b", "a b", "a  b", "2 a  b"],
        ["d" * 40, "d" * 41, "0 " + "d" * 40],
        ["", " ", "0", "0 ", "1"],
        ["rote Blüten", "日本", "中国"],
    ],
)
def test_classes_that_look_alike_are_told_apart_by_their_numbers(names):
    for axis in drawn_axes(names):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert len(set(shown)) == len(names)
        assert [label.split(" ")[0] for label in shown] == [str(i) for i in range(len(names))]


def test_names_of_classes_are_whole_or_cut_where_one_sees_it():
    fish = "Tinca tinca, a fish of Europe, {}"
    names = [
        "rote Blüten",
        "gelbe Blüten",
        fish.format("ladies"),
        fish.format("gentlemen"),
    ]
    names += ["a" * 24, "b" * 25, *(f"{end}{'c' * 30}{end}" for end in "xy")]
    for axis in drawn_axes(names):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert len(set(shown)) == len(names)
        assert shown[:2] == names[:2]
        assert shown[4] == names[4]
        assert all("…" in label and len(label) <= 27 for label in (*shown[2:4], *shown[5:]))


def test_long_names_leave_the_matrix_its_size():
    sides = []
    for names in (["a", "b"], ["rote Blüten", "eine Blüte ohne Ende und Anfang"]):
        figure = draw_confusion([[3.0, 1.0], [0.0, 4.0]], names)
        figure.canvas.draw()
        (ax,) = figure.axes
        sides.append(ax.get_window_extent().width)
        height = figure.get_window_extent().height
        assert all(0 <= t.get_window_extent().y0 <= height for t in ax.get_xticklabels())
    assert sides[1] > 0.9 * sides[0]
