"""The figure of any experiment of the laboratory."""

from typing import TYPE_CHECKING

from qat.report import discrete_figures, landscape_figures
from qat.theory.experiment import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {**landscape_figures.FIGURES, **discrete_figures.FIGURES}


def draw(result: Result) -> "Figure":
    """The figure that belongs to the experiment of `result`."""
    return FIGURES[result.name](result)
