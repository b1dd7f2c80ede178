"""Samples of a training set in rows, one for each way to augment them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qat.report.figures.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# inches of a picture with its caption
_SIDE = 1.15


def draw_samples(rows: Mapping[str, Sequence["tuple[Tensor, str]"]]) -> "Figure":
    """A row of pictures for each name, each picture with a caption below.

    Args:
        rows: name -> pictures (3, H, W) in 0..1 with their captions, equally many in each row.
    """
    columns = len(next(iter(rows.values())))
    with panels(len(rows), columns, width=_SIDE, height=_SIDE) as (figure, axes):
        for line, (name, pictures) in zip(axes, rows.items(), strict=True):
            line[0].set_ylabel(name)
            for ax, (picture, caption) in zip(line, pictures, strict=True):
                ax.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
                ax.set_xlabel(caption, fontsize=8)
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
        return figure
