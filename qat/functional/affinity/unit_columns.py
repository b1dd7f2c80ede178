"""Normalised feature columns: one column of channels per position, of unit length."""

import torch
from torch import Tensor

from qat.errors import SpecError

EPS = 1e-5


def unit_columns(features: Tensor, *, eps: float = EPS) -> Tensor:
    """Columns of features divided by their lengths.

        s_j = f_j / (l_j + eps),   l_j = ||f_j||_2

    A zero column stays zero, for eps = 0 too; one whose squares overflow becomes nan. Computed in
    at least float32, also under autocast.

    Args:
        features: (N, C, H, W) or (N, C, n), floating point.
        eps: >= 0; a column of length eps comes out with length 1/2.

    Returns:
        (N, C, n) with n = H W; float64 if features are, otherwise float32.

    Raises:
        SpecError: features have neither three nor four dimensions.

    >>> unit_columns(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]).double(), eps=0).tolist()
    [[[0.6, 0.0], [0.8, 0.0]]]
    """
    return columns_and_lengths(features, eps=eps)[0]


def columns_and_lengths(features: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """`unit_columns` with the lengths l, (N, 1, n), that `gradient_in_features` asks for.

    Raises:
        SpecError: features have neither three nor four dimensions.
    """
    if features.ndim not in (3, 4):
        raise SpecError(
            f"features must be (N, C, H, W) or (N, C, n), got {tuple(features.shape)}; choose a "
            "layer whose output is a feature map"
        )
    columns = features.flatten(2)
    columns = columns if columns.dtype == torch.float64 else columns.float()
    # vector_norm along channels takes eight times as long on a CPU
    lengths = root(columns.square().sum(1, keepdim=True))
    # squares that overflow must not end as columns of 0 and a plausible loss: 0 inf is nan
    lengths = lengths + 0 * lengths
    return columns / _divisor(lengths, eps), lengths


def gradient_in_features(
    gradient: Tensor, columns: Tensor, lengths: Tensor, *, eps: float
) -> Tensor:
    """Chain rule through `unit_columns`.

        dL/df_j = (g_j - s_j <s_j, g_j> (l_j + eps) / l_j) / (l_j + eps)

    Args:
        gradient: g = dL/ds, (N, C, n).
        columns: s, (N, C, n).
        lengths: l, (N, 1, n).
        eps: as in `unit_columns`.
    """
    divisor = _divisor(lengths, eps)
    along = (columns * gradient).sum(1, keepdim=True)
    # s is 0 where l is
    along *= divisor / lengths.masked_fill(lengths == 0, 1)
    return torch.addcmul(gradient, columns, along, value=-1).div_(divisor)


def root(x: Tensor) -> Tensor:
    """Square root whose slope at 0 is 0, the subgradient that a norm has there."""
    is_zero = x == 0
    return x.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def _divisor(lengths: Tensor, eps: float) -> Tensor:
    total = lengths + eps
    return total.masked_fill(total == 0, 1)
