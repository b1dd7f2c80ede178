"""What a step does with all weights together: blend into the latent weights, project, copy.

A weight of its own costs a few dispatches for each of these, and a pass over memory for each copy.
So weights are blended and copied by `torch._foreach` operations, projected by what can project many
at once, and not copied where the base optimizer can move the latent weights themselves.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Projection = Callable[[Tensor], Tensor]


def steps_in_place(base: Optimizer) -> bool:
    """Whether an optimizer moves whatever memory its parameters have at the step.

    Those of `torch.optim` do. Others may hold memory of their own, as those that flatten parameters
    or share buckets of them, and are given copies in the parameters' memory.
    """
    return type(base).__module__.startswith("torch.optim.")


@contextmanager
def blended(latent: Mapping[Tensor, Tensor], rho: float, *, in_place: bool) -> Iterator[None]:
    """Inside, parameters hold (1 - rho) w + rho x for a step; at the end w is what it made of them.

    With `in_place` the parameters are the latent weights inside, so that nothing is copied, and
    have their own memory again after. An error inside leaves latent weights half moved there, as it
    leaves the parameters of any optimizer; without `in_place` they stay blended.

    Args:
        latent: parameter, which holds forward weights x -> its latent weights w.
        rho: 0 .. 1.
        in_place: whether the step moves memory as it finds it.
    """
    parameters, weights = list(latent), list(latent.values())
    if rho not in (0, 1) and parameters:
        # into the latent weights, which the step replaces: 1 - rho would round a small rho
        torch._foreach_lerp_(weights, parameters, rho)
    lent = {p: w for p, w in latent.items() if in_place and _can_lend(p, w)}
    copied = {p: w for p, w in latent.items() if p not in lent} if len(lent) < len(latent) else {}
    if rho == 1:
        copy_all(lent.values(), lent)
    else:
        copy_all(copied, copied.values())
    own = [p.data for p in lent]
    try:
        for p, w in lent.items():
            p.data = w
        yield
    finally:
        for p, data in zip(lent, own, strict=True):
            p.data = data
    # the copied parameters hold the new latent weights here
    copy_all(copied.values(), copied)


@contextmanager
def shortened(parameters: Collection[Tensor], rate: float) -> Iterator[None]:
    """Inside, a base step whose moves of these parameters count for the fraction `rate`.

        p <- p + rate (p' - p)   where the step made p' of p

    For every update that is linear in the learning rate (SGD, Adam and their kin, decay included)
    it is the step at rate times the learning rate, whatever group and schedule the parameter has.

    Args:
        parameters: few and small ones; each is copied.
        rate: 0 .. 1.
    """
    before = [] if rate == 1 else [p.detach().clone() for p in parameters]
    yield
    if before:
        torch._foreach_lerp_(before, list(parameters), rate)
        copy_all(parameters, before)


def _can_lend(p: Tensor, w: Tensor) -> bool:
    """Whether a parameter with the memory of w would be the same tensor to everybody."""
    return (
        type(p) in (nn.Parameter, Tensor)
        and p.dtype == w.dtype
        and p.device == w.device
        and p.stride() == w.stride()
    )


@torch.no_grad()
def project(pairs: Mapping[Tensor, tuple[Projection, Tensor]]) -> None:
    """Q(w) into each parameter, those of equal projections together where these can `write`.

    Args:
        pairs: parameter -> its projection and latent weights.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for p, (projection, w) in pairs.items():
        if hasattr(projection, "write"):
            weights, targets = groups.setdefault(projection, ([], []))
            weights.append(w)
            targets.append(p)
        else:
            p.copy_(projection(w))
    for projection, (weights, targets) in groups.items():
        projection.write(weights, targets)


def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy values pairwise, in place."""
    target_list, source_list = list(targets), list(sources)
    if target_list:
        torch._foreach_copy_(target_list, source_list)
