"""Recomputation: a function of a weight that keeps the weight alone for its backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qat.functional.kernels import is_plain

Parts = tuple[Tensor, ...]


def recomputed(function: Callable[[Tensor], Parts], w: Tensor, *learned: Tensor) -> Parts:
    """`function(w)`, of which backward computes anew what lies between w and the result.

    A weight is small beside the activations that it multiplies, but a formula of five operations
    keeps it five times. Values and gradients are the same, bit for bit.

    Args:
        function: of w and of what it has learned; the first tensor that it gives has a gradient.
        w: a weight.
        learned: leaves of its own that the function reads.

    Returns:
        What the function gives.
    """
    if not (torch.is_grad_enabled() and is_plain(w)):
        return function(w)
    result: Parts = _Recomputed.apply(function, w, *learned)
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Parts], w: Tensor, *learned: Tensor
    ) -> Parts:
        ctx.function = function
        ctx.save_for_backward(w, *learned)  # the learned ones, so that autograd sees them change
        ctx.set_materialize_grads(False)
        y, *rest = function(w)
        ctx.mark_non_differentiable(*rest)
        return y, *rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        again = torch.is_grad_enabled()
        w, *learned = ctx.saved_tensors
        wants = ctx.needs_input_grad[1:]
        own = w if again or not wants[0] else w.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(own)[0]
        leaves = [t for t, wanted in zip((own, *learned), wants, strict=True) if wanted]
        found = iter(torch.autograd.grad(y, leaves, grad, create_graph=again))
        return None, *(next(found) if wanted else None for wanted in wants)
