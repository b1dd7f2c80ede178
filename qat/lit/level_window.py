"""How weights move between levels over consecutive steps: flips, oscillation, occupancy."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.plan import latent_weight, weight_parametrizations

Quantizer = WeightQuantizer | WeightParametrization

# whole tensors are encoded, for a code is exact only with the scale of its whole tensor
MOST_WEIGHTS = 2**20
SAMPLE = 1024  # weights per tensor that are followed


def quantized_weights(module: LightningModule) -> list[tuple[Tensor, Quantizer]]:
    """Latent weights and quantizers of a run, projected by the rule or quantized in the graph."""
    wrapper = getattr(module, "quant_optimizer", None)
    pairs = [] if wrapper is None else wrapper.latent_pairs()
    found: list[tuple[Tensor, Quantizer]] = [
        (w, quantizer) for w, quantizer in pairs if isinstance(quantizer, WeightQuantizer)
    ]
    net: torch.nn.Module = module.net  # type: ignore[assignment]
    for name, quantizer in weight_parametrizations(net):
        found.append((latent_weight(net.get_submodule(name)).detach(), quantizer))
    return found


def sampled_codes(weights: Sequence[tuple[Tensor, Quantizer]]) -> Tensor:
    """Codes int8 (S,) at fixed positions of the smaller tensors, at most MOST_WEIGHTS in all.

    Tensors are taken in order of their size until the budget is spent, at least one; of each,
    SAMPLE evenly spaced weights.
    """
    ordered = sorted(weights, key=lambda pair: pair[0].numel())
    codes: list[Tensor] = []
    spent = 0
    for w, quantizer in ordered:
        spent += w.numel()
        if codes and spent > MOST_WEIGHTS:
            break
        every = max(1, w.numel() // SAMPLE)
        codes.append(quantizer.encode(w)[0].flatten()[::every][:SAMPLE].cpu())
    return torch.cat(codes) if codes else torch.empty(0, dtype=torch.int8)


def oscillation(codes: Tensor) -> float:
    """Share of the weights' steps that flip back: against the direction of the flip before.

    Args:
        codes: (T, S) integers of T consecutive steps. Flips before the window are not known.

    Returns:
        Number of flips whose direction is opposite to that of the weight's last flip in the window,
        divided by S (T - 1).

    Source: the oscillation of arXiv:2203.08086.
    """
    moves = codes.short().diff(dim=0).sign()
    last, back = torch.zeros_like(moves[0]), 0
    for move in moves:
        back += int((move * last < 0).sum())
        last = torch.where(move != 0, move, last)
    return back / max(1, moves.numel())


def occupancy(codes: Tensor) -> Tensor:
    """Share of the T steps that each weight spends at its most visited level, (S,) in 1/T .. 1.

    Args:
        codes: (T, S) integers of T consecutive steps.
    """
    most_visited = codes.mode(dim=0).values
    return (codes == most_visited).float().mean(dim=0)
