"""Confusion matrix: which class was taken for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qat.report.figures.curves import WIDTH
from qat.report.figures.style import COLORS, panels, plain
from qat.report.runs.runs import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Matrix = list[list[float]]
# with more classes the numbers are too small to read
_MOST_NUMBERS = 12
# letters of a name: whole names of two words; of longer ones both ends
_LONGEST, _TAIL = 24, 9
# from so many letters on they are small, and the figure grows by so many inches for each
_WIDE, _LETTER = 8, 0.065


def confusion_of(value: object) -> Matrix | None:
    """A square matrix of counts as summary.json has it; None if it is none.

    >>> confusion_of([[3, 1], [0, 4]])
    [[3.0, 1.0], [0.0, 4.0]]
    >>> confusion_of([[3, 1]])
    """
    if not isinstance(value, list) or not value:
        return None
    rows = [[finite(cell) for cell in row] if isinstance(row, list) else [] for row in value]
    if any(len(row) != len(rows) for row in rows):
        return None
    matrix = [[cell for cell in row if cell is not None and cell >= 0] for row in rows]
    return matrix if all(len(row) == len(matrix) for row in matrix) else None


def summed(matrices: Sequence[Matrix]) -> Matrix:
    """The sum of matrices of one size."""
    rows = zip(*matrices, strict=True)
    return [[sum(cells) for cells in zip(*own, strict=True)] for own in rows]


def draw_confusion(matrix: Matrix, names: Sequence[str]) -> "Figure":
    """True classes in rows, predicted ones in columns; blue is right, red is wrong.

    Opacity is the share of the row, raised for errors: they are what one looks for.

    Args:
        matrix: counts.
        names: of the classes.
    """
    size = len(matrix)
    labels = tick_labels(names) if len(names) == size <= 2 * _MOST_NUMBERS else []
    longest = max(map(len, labels), default=0)
    side = WIDTH + _LETTER * max(0, longest - _WIDE)
    with panels(width=side, height=side) as (figure, axes):
        ax = axes[0, 0]
        ax.imshow(_shades(matrix), interpolation="nearest")
        if labels:
            letters = {"fontsize": 7 if longest > _WIDE else 9}
            ax.set_xticks(range(size), labels, rotation=90 if longest > 2 else 0, **letters)
            ax.set_yticks(range(size), labels, **letters)
        if size <= _MOST_NUMBERS:
            _write_numbers(ax, matrix)
        ax.set(xlabel="predicted", ylabel="true")
        ax.grid(visible=False)
        return figure


def tick_labels(names: Sequence[str]) -> list[str]:
    """Names of classes as ticks: whole, or cut in their middle; numbered if any two look alike.

    >>> tick_labels(["rote Blüten", "Tinca tinca, a fish of Europe, ladies"])
    ['rote Blüten', 'Tinca tinca, a…e, ladies']
    >>> tick_labels(["a b", "a  b", "c"])
    ['0 a b', '1 a b', '2 c']
    """
    labels = [_cut(" ".join(name.split())) for name in names]
    if len(set(labels)) == len(labels):
        return labels
    # every one of them: a name may look like another with its number
    return [f"{index} {label}" for index, label in enumerate(labels)]


def _cut(name: str) -> str:
    if len(name) <= _LONGEST:
        return plain(name)
    # what is between the ends counts as a letter
    head = name[: _LONGEST - _TAIL - 1].rstrip()
    return f"{plain(head)}…{plain(name[-_TAIL:].lstrip())}"


def _shades(matrix: Matrix) -> list[list[tuple[float, ...]]]:
    from matplotlib.colors import to_rgb

    right, wrong = to_rgb(COLORS[0]), to_rgb(COLORS[1])
    totals = [sum(row) or 1.0 for row in matrix]
    return [
        [
            (*right, 0.6 * cell / total) if i == j else (*wrong, min(0.8, 2.5 * cell / total))
            for j, cell in enumerate(row)
        ]
        for i, (row, total) in enumerate(zip(matrix, totals, strict=True))
    ]


def _write_numbers(ax: Any, matrix: Matrix) -> None:
    for i, row in enumerate(matrix):
        for j, cell in enumerate(row):
            if cell:
                ax.text(j, i, f"{cell:g}", ha="center", va="center", fontsize=7)
