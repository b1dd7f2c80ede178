"""Weight flips, oscillation and level occupancy over consecutive steps."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.phases import Phases
from qat.quantize.weights import latent_weight, weight_parametrizations

Quantizer = WeightQuantizer | WeightParametrization

# whole tensors are encoded, for most codes are exact only with the scale of the whole tensor
MOST_WEIGHTS = 2**20
SAMPLE = 2**16  # weights that are followed, at most


def quantized_weights(phases: Phases) -> list[tuple[Tensor, Quantizer]]:
    """Latent weights and quantizers of a training, projected by the rule or quantized in the graph.

    Args:
        phases: of the network in training.
    """
    found: list[tuple[Tensor, Quantizer]] = [
        (w, quantizer)
        for optimizer in phases.optimizers
        for w, quantizer in optimizer.latent_pairs()
        if isinstance(quantizer, WeightQuantizer)
    ]
    for name, quantizer in weight_parametrizations(phases.net):
        found.append((latent_weight(phases.net, name).detach(), quantizer))
    return found


def flip_rate(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Share of the codes that are others than before, 0..1; 0 where there are none.

    Args:
        before: codes of each weight.
        after: of the same weights, in the same order.
    """
    pairs = zip(before, after, strict=True)
    flips = sum(int((new != old.to(new.device)).count_nonzero()) for old, new in pairs)
    return flips / max(1, sum(codes.numel() for codes in after))


def sampled_codes(weights: Sequence[tuple[Tensor, Quantizer]]) -> Tensor:
    """Codes int8 (S,) of evenly spaced weights, so that large tensors count for more.

    A sign needs no scale: of all tensors with two levels and one scale, only the weights followed
    are encoded. Of the others the smallest ones are followed, MOST_WEIGHTS in all, at least one.
    """
    followed = [pair for pair in weights if _is_sign(pair[1])]
    whole = [pair for pair in weights if not _is_sign(pair[1])]
    sizes = accumulate(sorted(w.numel() for w, _ in whole))
    count = max(1, sum(size <= MOST_WEIGHTS for size in sizes))
    followed += sorted(whole, key=lambda pair: pair[0].numel())[:count]
    every = -(-sum(w.numel() for w, _ in followed) // SAMPLE)
    return torch.cat([_every(w, quantizer, every) for w, quantizer in followed]).cpu()


def _is_sign(quantizer: Quantizer) -> bool:
    return len(quantizer.levels) == 2 and quantizer.granularity == "tensor"


def _every(w: Tensor, quantizer: Quantizer, every: int) -> Tensor:
    """Codes of every n-th weight."""
    if _is_sign(quantizer):
        return quantizer.encode(w.flatten()[::every])[0]
    return quantizer.encode(w)[0].flatten()[::every]


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
