"""Named parameter groups for a base optimizer: steps, vectors, weights; the first match wins."""

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

Decay = Literal["all", "weights"]


def parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    weight_decay: float,
    step_rate: float,
    decay: Decay = "all",
) -> list[dict[str, Any]]:
    """Groups "step" (alphas), "vector" (biases, normalisation) and "weight" (all else).

    The alphas learn with lr * step_rate, and their accumulated gradient is clamped to
    +-1 / step_rate before the base step: with plain SGD exactly the authors'
    clip(rate * gradient, -1, 1) at the full rate.

    Args:
        named_parameters: of the prepared network; those without requires_grad are left out. A
            parameter named `step` of dimension 0 is the alpha of an activation quantizer.
        lr: learning rate of the weights.
        weight_decay: decay of the weights.
        step_rate: fraction of lr for the alphas, > 0 if any of them is learned.
        decay: "all" decays every group, as the papers' code does; "weights" only the third.

    Returns:
        Non-empty groups for a torch optimizer, each with "group", "lr", "weight_decay" and
        named "params".

    Source: arXiv:1808.05240, the authors' code.
    """
    rest = weight_decay if decay == "all" else 0.0
    groups: dict[str, dict[str, Any]] = {
        "step": {"lr": lr * step_rate, "weight_decay": rest},
        "vector": {"lr": lr, "weight_decay": rest},
        "weight": {"lr": lr, "weight_decay": weight_decay},
    }
    if step_rate > 0:
        groups["step"]["grad_clip"] = 1 / step_rate
    members: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in groups}
    for name, p in named_parameters:
        if p.requires_grad:
            members[_kind(name, p)].append((name, p))
    return [
        {"group": kind, "params": members[kind], **options}
        for kind, options in groups.items()
        if members[kind]
    ]


def _kind(name: str, parameter: Tensor) -> str:
    if parameter.ndim == 0 and name.rpartition(".")[2] == "step":
        return "step"
    return "vector" if parameter.ndim <= 1 else "weight"
