"""Parameter groups of a base optimizer: steps, vectors, weights; the first match wins."""

from collections.abc import Collection, Iterable
from typing import Any, Literal

from torch import Tensor

Decay = Literal["all", "weights"]


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float | None,
    step_rate: float,
    decay: Decay = "all",
    projected: Collection[Tensor] = (),
) -> list[dict[str, Any]]:
    """Groups "step" (alphas), "vector" (biases, normalisation, clips, scales) and "weight".

    The alphas learn with lr * step_rate, and their accumulated gradient is clamped to
    +-1 / step_rate before the base step: with plain SGD and without decay exactly the authors'
    clip(rate * gradient, -1, 1) at the full rate. Unlike there, the rate scales the decay of the
    alphas as well.

    Args:
        named_parameters: of the prepared network; those without requires_grad are left out, but
            for the projected ones. A parameter named `step` of dimension 0 is the alpha of an
            activation quantizer.
        lr: learning rate of the weights.
        weight_decay: decay of the weights; None leaves it to the optimizer's own default.
        step_rate: fraction of lr for the alphas, > 0 if any of them is learned.
        decay: "all" decays every group, as the papers' code does; "weights" only the third.
        projected: parameters that stay when they are frozen: nothing moves their latent values,
            which the optimizer's state then keeps by name beside the others'.

    Returns:
        Non-empty groups for a torch optimizer, each with "group", "lr", "weight_decay" and
        named "params".

    Source: arXiv:1808.05240, the authors' code.
    """
    own: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    rest = own if decay == "all" else {"weight_decay": 0.0}
    groups: dict[str, dict[str, Any]] = {
        "step": {"lr": lr * step_rate, **rest},
        "vector": {"lr": lr, **rest},
        "weight": {"lr": lr, **own},
    }
    if step_rate > 0:
        groups["step"]["grad_clip"] = 1 / step_rate
    members: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in groups}
    kept = {id(parameter) for parameter in projected}  # a tensor compares by value
    for name, p in named_parameters:
        if p.requires_grad or id(p) in kept:
            members[_kind(name, p)].append((name, p))
    return [
        {"group": kind, "params": members[kind], **options}
        for kind, options in groups.items()
        if members[kind]
    ]


def _kind(name: str, parameter: Tensor) -> str:
    if parameter.ndim == 0 and name.rpartition(".")[2] == "step":
        return "step"
    # what a parametrization learns beside the weight itself: scales, also those of shape (O, 1, ..)
    is_scale = ".parametrizations." in f".{name}" and not name.endswith(".original")
    return "vector" if parameter.ndim <= 1 or is_scale else "weight"
