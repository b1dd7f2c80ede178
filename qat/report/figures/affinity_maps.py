"""Affinity matrices of networks side by side: what feature affinity compares."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qat.functional.affinity.feature_affinity import affinity
from qat.report.figures.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_affinity_maps(
    images: Tensor, maps: Mapping[str, Tensor], *, position: tuple[int, int] | None = None
) -> "Figure":
    """One row per image: the image, then each network's affinities.

    With a position (row, column) of the feature map, the panels show the cosines of that position
    with all others as an H x W picture, and a cross marks it; without, the whole n x n matrix.

    Args:
        images: (N, C, H', W'); grey or RGB, any range.
        maps: name of a network -> its feature maps (N, C, H, W).
        position: where to look from, inside every map.

    Returns:
        The figure; colours run from 0 to 1, or from -1 to 1 if there are negative cosines.
    """
    with panels(len(images), 1 + len(maps), width=2.2, height=2.2) as (figure, axes):
        for row, image in zip(axes, images, strict=True):
            row[0].imshow(_pixels(image), cmap="gray", interpolation="nearest")
        cosines = {name: affinity(features.detach()).cpu() for name, features in maps.items()}
        colours = _colours(cosines.values())
        for column, (name, matrices) in enumerate(cosines.items(), start=1):
            axes[0, column].set_title(name)
            for row, matrix in zip(axes, matrices, strict=True):
                drawn = _draw(row[column], matrix, maps[name].shape[-2:], position, colours)
        axes[0, 0].set_title("image")
        for panel in axes.flat:
            panel.set(xticks=[], yticks=[])
            panel.grid(False)
            panel.spines[:].set_visible(False)
        figure.colorbar(drawn, ax=axes, label="cosine", shrink=0.6)
        return figure


def _colours(cosines: Iterable[Tensor]) -> dict[str, Any]:
    is_signed = min(float(matrices.min()) for matrices in cosines) < 0
    # each cosine is a square of one colour; what is put between them tells nothing
    return {
        **{"cmap": "RdBu_r" if is_signed else "viridis", "vmin": -1 if is_signed else 0, "vmax": 1},
        "interpolation": "nearest",
    }


def _draw(
    panel: Any,
    matrix: Tensor,
    size: torch.Size,
    position: tuple[int, int] | None,
    colours: Mapping[str, Any],
) -> Any:
    if position is None:
        return panel.imshow(matrix, **colours)
    row, column = position
    drawn = panel.imshow(matrix[row * size[1] + column].reshape(*size), **colours)
    panel.plot(column, row, marker="x", color="red")
    return drawn


def _pixels(image: Tensor) -> Tensor:
    """(C, H, W) of any range as (H, W) or (H, W, 3) in 0..1."""
    low, high = image.min(), image.max()
    scaled = ((image - low) / (high - low).clamp(min=1e-12)).detach().cpu()
    return scaled[0] if len(image) == 1 else scaled.permute(1, 2, 0)
