"""Recomputation: a function of a weight that keeps the weight alone for its backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qat.functional.kernels import is_plain

Parts = tuple[Tensor, ...]


def recomputed(function: Callable[..., Parts], w: Tensor, *learned: Tensor) -> Parts:
    """`function(w, *learned)`, of which backward computes anew what lies between w and the result.

    A weight is small beside the activations that it multiplies, but a formula of five operations
    keeps it five times. Values and gradients are the same, bit for bit.

    Args:
        function: the first tensor that it gives has a gradient.
        w: a weight.
        learned: what the function has learned besides.

    Returns:
        What the function gives.
    """
    if not (torch.is_grad_enabled() and is_plain(w)):
        return function(w, *learned)
    result: Parts = _Recomputed.apply(function, w, *learned)
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Parts], w: Tensor, *learned: Tensor) -> Parts:
        ctx.function = function
        ctx.save_for_backward(w, *learned)
        ctx.set_materialize_grads(False)
        y, *rest = function(w, *learned)
        ctx.mark_non_differentiable(*rest)
        return y, *rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        again, wants = torch.is_grad_enabled(), ctx.needs_input_grad[1:]
        # others than what was given, whose hooks are called by who gave it
        if again:
            own = [t.view_as(t) for t in ctx.saved_tensors]
        else:
            own = [
                t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wants, strict=True)
            ]
        with torch.enable_grad():
            y = ctx.function(*own)[0]
        leaves = [t for t, wanted in zip(own, wants, strict=True) if wanted]
        found = iter(torch.autograd.grad(y, leaves, grad, create_graph=again))
        return None, *(next(found) if wanted else None for wanted in wants)
