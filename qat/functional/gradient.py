"""Gradient scaling: functions that change nothing but the gradient."""

from torch import Tensor


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with `factor` times the gradient.

    >>> import torch
    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> y = scaled_gradient(x, 0.5)
    >>> y.item(), torch.autograd.grad(y, x)[0].item()
    (3.0, 0.5)
    """
    part = x * factor
    return x.detach() + (part - part.detach())  # the bracket is exactly 0


def positive(x: Tensor, least: float) -> Tensor:
    """max(x, least) whose gradient is that of x also below, so that x can come back.

    >>> import torch
    >>> x = torch.tensor(-3.0, requires_grad=True)
    >>> y = positive(x, 0.5)
    >>> y.item(), torch.autograd.grad(y, x)[0].item()
    (0.5, 1.0)
    """
    return x.detach().clamp(min=least) + (x - x.detach())
