"""Synchronised BatchNorm: statistics of the whole batch where several processes share it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def synced_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation by the mean and variance of all processes' inputs, as in one batch.

        m = sum_r m_r,   mu = sum_r sum(x_r) / m,   var = sum_r sum((x_r - mu)^2) / m
        y = weight (x - mu) / sqrt(var + eps) + bias

    with m_r the values of a channel in process r. Running estimates take mu and var m / (m - 1).
    Two sums go through all processes, so that the variance is that of centred values; gradients go
    back through both.

    Args:
        x: (N_r, C, ...), the share of this process.
        running_mean: (C,), moved in place; None keeps none.
        running_var: (C,), likewise.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        training: always true; here for the signature of `torch.nn.functional.batch_norm`.
        momentum: share of the new values in the running estimates.
        eps: > 0.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    values = x if x.dtype == torch.float64 else x.float()
    local = torch.full((1,), values.numel() / values.shape[1]).to(values)
    sums = _over_ranks(torch.cat([values.sum(axes), local]))
    mean, count = sums[:-1] / sums[-1], sums[-1]
    centred = values - mean.view(shape)
    var = _over_ranks(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    y = centred * (var + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)
    return y.to(x.dtype)


def _over_ranks(x: Tensor) -> Tensor:
    """The sum over all processes; gradients are summed likewise."""
    total: Tensor = all_reduce(x)  # type: ignore[no-untyped-call]
    return total


class _Synced(TorchFunctionMode):
    """Whatever calls batch_norm in training, as subclasses of BatchNorm do, gets the synced one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm and (given.get("training") or (len(args) > 5 and args[5])):
            return synced_batch_norm(*args, **given)
        return func(*args, **given)


@contextmanager
def synced_statistics() -> Iterator[None]:
    """A block in which BatchNorm in training takes the statistics of all processes' inputs."""
    with _Synced():
        yield
