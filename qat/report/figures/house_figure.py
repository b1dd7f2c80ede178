"""The figure that every drawing function answers: a notebook shows it by itself."""

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# a row of four panels fills the width of a page
_DPI = 80


class HouseFigure(Figure):
    """A figure that needs no display, and shows as a picture where a notebook's cell answers it.

    Notebooks draw matplotlib's own figures only after `%matplotlib inline`, a line of IPython's.

    Args:
        style: rc parameters, for saving as for drawing.
        options: of `Figure`.
    """

    def __init__(self, style: Any, **options: Any) -> None:
        super().__init__(**options)
        FigureCanvasAgg(self)
        self._style = style

    def _repr_png_(self) -> bytes:
        drawing = io.BytesIO()
        with rc_context(self._style):
            # no version of ours or matplotlib's: equal figures give equal bytes
            self.savefig(drawing, format="png", dpi=_DPI, metadata={"Software": None})
        return drawing.getvalue()
