"""Group section: what one group of runs did layer by layer, in pictures and a table."""

from collections.abc import Mapping, Sequence

from qat.report.compare.bands import Band
from qat.report.compare.layers import layer_bands, layer_histograms
from qat.report.figures.confusion import confusion_of, draw_confusion, summed
from qat.report.figures.layers import draw_histograms, draw_layers, spread_out
from qat.report.page.html import Block, Gallery, Paragraph, Picture
from qat.report.page.pictures import Pictures
from qat.report.page.tables import layer_table
from qat.report.runs.grouping import Group

# quantity of layers.csv -> (title, axis, how to read it)
_LINES = {
    "alpha": (
        "Activation steps.",
        "alpha",
        "The distance of two neighbouring activation levels, learned by each quantizer. Lines that "
        "flatten have settled.",
    ),
    "flip_rate": (
        "Flips by layer.",
        "share of codes changed",
        "The share of each layer's weights that moved to another level since the record before.",
    ),
    "distance": (
        "Distance to the grid by layer.",
        "||w - Q(w)|| / ||w||",
        "0: the latent weights lie on their levels. What remains is rounded away at the end.",
    ),
}


def group_section(group: Group, pictures: Pictures, *, state: str) -> list[Block]:
    """The pictures and the table of a group's layers.

    Args:
        group: with a finished run.
        pictures: where figures go.
        state: last or selected, of the confusion matrix.
    """
    tables = [run.rows("layers.csv") for run in group.finished]
    bands = {quantity: layer_bands(tables, quantity) for quantity in _LINES}
    shown = [
        *_lines(group, bands, pictures),
        *_histograms(group, pictures),
        *_confusion(group, pictures, state),
    ]
    parts: list[Block] = [Gallery(shown)] if shown else []
    if not any(tables) and not group.is_float:
        parts.append(Paragraph(_NO_RECORDS, "note"))
    layers = layer_table(group, _last_values(bands))
    return [*parts, layers] if layers else parts


_NO_RECORDS = (
    "These runs wrote no layers.csv, so there are no curves of alpha and no histograms: they are "
    "older, or ran with callbacks.records=null."
)


def _lines(
    group: Group, bands: Mapping[str, Mapping[str, Band]], pictures: Pictures
) -> list[Picture]:
    found = []
    for quantity, (title, ylabel, reading) in _LINES.items():
        own = {layer: band for layer, band in bands[quantity].items() if band.places}
        if own:
            figure = draw_layers(own, ylabel=ylabel)
            count = f"{len(own)} layers, blue at the input to red at the output."
            name = f"{group.label}-{quantity}"
            found.append(pictures.add(figure, name, title=title, reading=f"{reading} {count}"))
    return found


def _histograms(group: Group, pictures: Pictures) -> list[Picture]:
    for run in group.finished:
        histograms = layer_histograms(run.rows("histograms.csv"))
        if histograms:
            shown = spread_out(histograms)
            few = f" {len(shown)} of {len(histograms)} layers, evenly by depth."
            reading = (
                f"Latent weights of seed {run.seed} in units of their scale, from the first "
                "quantized step (bottom) to the last (top, with its number); stronger blue "
                f"holds more weights. Dashed lines are the levels."
                + (few if len(shown) < len(histograms) else "")
            )
            name = f"{group.label}-histograms"
            figure = draw_histograms(shown)
            title = "Weights against the grid."
            return [pictures.add(figure, name, title=title, reading=reading)]
    return []


def _confusion(group: Group, pictures: Pictures, state: str) -> list[Picture]:
    found = [confusion_of(run.value(state, "confusion")) for run in group.finished]
    matrices = [matrix for matrix in found if matrix is not None]
    if not matrices or len({len(matrix) for matrix in matrices}) > 1:
        return []
    total = summed(matrices)
    classes = group.finished[0].value("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    seeds = f"{len(matrices)} seeds together" if len(matrices) > 1 else "one seed"
    return [
        pictures.add(
            draw_confusion(total, names),
            f"{group.label}-confusion",
            title="Confusion.",
            reading=f"{worst_confusions(total, names)} Test images, {seeds}, {state} epoch. Rows "
            "are true classes, columns predictions; red cells are mistakes.",
        )
    ]


def worst_confusions(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A sentence with the most frequent mistake.

    >>> worst_confusions([[8, 2], [0, 9]], ["cat", "dog"])
    'Most often cat was taken for dog: 2 of 10.'
    """
    errors = [
        (count, i, j)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    if not errors:
        return "No mistakes."
    count, i, j = max(errors, key=lambda error: error[0])
    true, predicted = (names[k] if len(names) == len(matrix) else str(k) for k in (i, j))
    return f"Most often {true} was taken for {predicted}: {count:g} of {sum(matrix[i]):g}."


def _last_values(bands: Mapping[str, Mapping[str, Band]]) -> dict[str, dict[str, float]]:
    """What the table shows of the end of training, for the quantities that name weight layers."""
    titles = {"flip_rate": "flips, last record", "distance": "distance, end"}
    return {
        title: {layer: band.means[-1] for layer, band in bands[quantity].items() if band.means}
        for quantity, title in titles.items()
        if bands[quantity]
    }
