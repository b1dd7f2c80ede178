"""Grids as their formulas say it, in whole passes: what the fast solvers are compared with."""

import torch

from qat.functional.gaussian import gaussian_step


def binary(rows):
    """Signs and mean magnitudes, one reduction over each row."""
    rows = rows.float()
    return torch.where(rows >= 0, 1.0, -1.0), rows.abs().mean(dim=1, keepdim=True)


def ternary(rows):
    """Every prefix of the whole sorted row is tried."""
    rows = rows.float()
    falling = rows.abs().sort(dim=1, descending=True).values
    sums = falling.cumsum(dim=1, dtype=torch.float64)
    counts = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    best = (sums.square() / counts).argmax(dim=1, keepdim=True)
    values = rows.sign() * (rows.abs() >= falling.gather(1, best))
    return values + 0.0, (sums.gather(1, best) / (best + 1)).float()


def uniform(rows, bits, rounds=5):
    """Alternation with one float32 reduction over each row."""
    rows, largest = rows.float(), 2 ** (bits - 1) - 1
    peak = rows.abs().amax(dim=1, keepdim=True)
    share = rows / peak.masked_fill(peak == 0, 1)
    scale = share.square().mean(dim=1, keepdim=True).sqrt() * peak * gaussian_step(largest)
    for _ in range(rounds):
        values = (rows / scale.masked_fill(scale == 0, 1)).round().clamp(-largest, largest)
        energy = values.square().sum(dim=1, keepdim=True)
        scale = (rows * values).sum(dim=1, keepdim=True) / energy.clamp_min(1)
    return values + 0.0, scale


def two_bit_power(rows):
    """Every power of two from far below the mean to above the peak is tried, in float64."""
    size = rows.double().abs()
    best, scale = torch.zeros(len(rows), 1, dtype=torch.float64), torch.zeros(len(rows), 1)
    top = torch.frexp(size.max()).exponent.item()
    for exponent in range(top + 1, top - 40, -1):
        gain = (2.0 * 2.0**exponent * size - 4.0**exponent).clamp_min(0).sum(1, keepdim=True)
        scale = torch.where(gain > best, 2.0**exponent, scale)
        best = torch.maximum(best, gain)
    return rows.sign() * (rows.abs() >= scale / 2) + 0.0, scale
