"""Distillation distances between student and teacher; the teacher is a constant in all.

Feature maps are (N, C, H, W). `qat.functional.affinity` has the feature affinities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.errors import SpecError


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean-squared error of logits.

        1 / (N K) sum_nk (s_nk - t_nk)^2

    Args:
        student: logits (N, K).
        teacher: logits (N, K).

    Raises:
        SpecError: the shapes differ.
    """
    _check_equal(student, teacher)
    return F.mse_loss(_wide(student), _wide(teacher.detach()))


def logit_kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of softened predictions, mean over the batch.

        T^2 / N sum_n KL(softmax(t_n / T) || softmax(s_n / T))

    For large T its gradient tends to that of half the squared distance of centred logits over K.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: T > 0; 1 leaves the predictions as they are.

    Raises:
        SpecError: the shapes differ, or the temperature is not above 0.

    Source: arXiv:1503.02531, sec. 2.
    """
    _check_equal(student, teacher)
    if not temperature > 0:
        raise SpecError(f"temperature must be > 0, got {temperature}; 1 leaves predictions as is")
    own = F.log_softmax(_wide(student) / temperature, dim=1)
    other = F.log_softmax(_wide(teacher.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(own, other, reduction="batchmean", log_target=True)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean-squared error of feature maps, over all entries (FitNet).

    Args:
        student: (N, C, H, W), after the regressor that gives it the teacher's channels.
        teacher: (N, C, H, W).

    Raises:
        SpecError: the shapes differ.

    Source: arXiv:1412.6550.
    """
    _check_equal(student, teacher, cure="; use distill.features.adapter=conv")
    return F.mse_loss(_wide(student), _wide(teacher.detach()))


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean-squared error of attention maps.

        q_n = vec(mean_c f_nc^2) / ||vec(mean_c f_nc^2)||,   1 / (N n) sum_n ||q_n^s - q_n^t||^2

    with n = H W. Invariant to a positive factor on either map.

    Args:
        student: (N, C, H, W); C may differ from the teacher's.
        teacher: (N, C', H, W).

    Raises:
        SpecError: batch or size differ.

    Source: arXiv:1612.03928, in the form of arXiv:1910.10699's benchmark.
    """
    own, other = _attention(student), _attention(teacher.detach())
    _check_equal(own, other)
    return F.mse_loss(own, other)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the similarities between the images of a batch.

        G = F F^T with F = (N, C H W), rows divided by their l2 norms,  ||G_s - G_t||_F^2 / N^2

    Args:
        student: (N, C, H, W); only N must equal the teacher's.
        teacher: (N, C', H', W').

    Raises:
        SpecError: the batches differ.

    Source: arXiv:1907.09682.
    """
    own, other = _similarity(student), _similarity(teacher.detach())
    _check_equal(own, other)
    return F.mse_loss(own, other)


def _attention(features: Tensor) -> Tensor:
    return F.normalize(_wide(features).square().mean(dim=1).flatten(1), dim=1)


def _similarity(features: Tensor) -> Tensor:
    rows = _wide(features).flatten(1)
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows @ rows.T, dim=1)


def _wide(features: Tensor) -> Tensor:
    """At least float32: squares of half-precision features overflow."""
    return features if features.dtype == torch.float64 else features.float()


def _check_equal(student: Tensor, teacher: Tensor, *, cure: str = "") -> None:
    if student.shape != teacher.shape:
        raise SpecError(
            f"student and teacher must give the same shape; got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}{cure}"
        )
