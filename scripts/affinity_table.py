"""Affinity cost as numbers: measurements, fitted exponents, tables in Markdown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityCost:
    """What one method costs on maps of one shape, forward and backward.

    Attributes:
        method: name of the method.
        channels: C, of student and teacher.
        side: H = W.
        ms: shortest time, milliseconds.
        mb: peak of what it allocates, beyond its inputs, 10^6 bytes.
    """

    method: str
    channels: int
    side: int
    ms: float
    mb: float

    @property
    def positions(self) -> int:
        """Number of positions, H W."""
        return self.side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAgreement:
    """How well FFA's gradient points along the exact one, at what cost.

    Attributes:
        columns: k.
        channels: C.
        side: H = W.
        ms: shortest time of FFA, milliseconds.
        cosine: with the exact gradient, mean over draws of the directions.
        spread: standard deviation over draws.
    """

    columns: int
    channels: int
    side: int
    ms: float
    cosine: float
    spread: float


def exponents(costs: Sequence[AffinityCost], *, from_positions: int = 256) -> tuple[float, float]:
    """Least-squares p and q of ms = a n^p C^q, for the costs of one method.

    Args:
        costs: of one method.
        from_positions: smaller maps are left out, the fixed cost of a call rules there.

    Returns:
        p of the positions and q of the channels; nan where there are less than two values.
    """
    costs = [cost for cost in costs if cost.positions >= from_positions]
    sizes, widths = ([math.log(v) for v in _values(costs, k)] for k in ("positions", "channels"))
    design = torch.tensor([sizes, widths, [1.0] * len(costs)], dtype=torch.float64).T
    times = torch.tensor([[math.log(cost.ms)] for cost in costs], dtype=torch.float64)
    # gelsd also solves where a size or a width is alone, and its exponent without meaning
    fit = torch.linalg.lstsq(design, times, driver="gelsd").solution
    p, q = float(fit[0]), float(fit[1])
    return p if len(set(sizes)) > 1 else math.nan, q if len(set(widths)) > 1 else math.nan


def affinity_report(
    costs: Sequence[AffinityCost],
    agreements: Sequence[GradientAgreement],
    *,
    title: str,
    ratio: tuple[str, str],
) -> str:
    """Markdown: all tables under a line that says what was measured.

    Args:
        costs: every method for every shape.
        agreements: any.
        title: what was measured, and where.
        ratio: two methods whose times are divided.
    """
    parts = [
        title,
        cost_table(costs, ratio=ratio),
        "Time as a power of n = H W and of C, fitted where n >= 256:",
        exponent_table(costs),
        "The gradient of FFA beside that of FA:",
        agreement_table(agreements),
    ]
    return "\n\n".join(parts) + "\n"


def cost_table(costs: Sequence[AffinityCost], *, ratio: tuple[str, str]) -> str:
    """Markdown: a row per shape, a column per method with ms / MB, and a ratio of two of them.

    Args:
        costs: every method for every shape.
        ratio: the method whose time is divided, and by whose.
    """
    methods = list(dict.fromkeys(cost.method for cost in costs))
    lines = [["C", "H = W", *(f"{m}: ms / MB" for m in methods), "ratio", "fastest"]]
    for channels, side in dict.fromkeys((c.channels, c.side) for c in costs):
        own = {c.method: c for c in costs if (c.channels, c.side) == (channels, side)}
        cells = [f"{own[m].ms:.3g} / {own[m].mb:.3g}" for m in methods]
        quotient = f"{own[ratio[0]].ms / own[ratio[1]].ms:.1f}"
        fastest = min(own, key=lambda m: own[m].ms)
        lines.append([str(channels), str(side), *cells, quotient, fastest])
    return f"{_markdown(lines)}\n\nratio: {ratio[0]} over {ratio[1]}"


def exponent_table(costs: Sequence[AffinityCost]) -> str:
    """Markdown: the exponents of n and C for each method."""
    lines = [["method", "exponent of n", "exponent of C"]]
    for method in dict.fromkeys(cost.method for cost in costs):
        p, q = exponents([cost for cost in costs if cost.method == method])
        lines.append([method, f"{p:.2f}", f"{q:.2f}"])
    return _markdown(lines)


def agreement_table(agreements: Sequence[GradientAgreement]) -> str:
    """Markdown: the cosine of FFA's gradient with the exact one, and its cost."""
    lines = [["C", "H = W", "k", "ms", "cosine", "std over draws"]]
    lines += [
        [
            *(str(value) for value in (a.channels, a.side, a.columns)),
            *(f"{a.ms:.3g}", f"{a.cosine:.3f}", f"{a.spread:.3f}"),
        ]
        for a in agreements
    ]
    return _markdown(lines)


def _values(costs: Iterable[AffinityCost], key: str) -> list[float]:
    return [float(getattr(cost, key)) for cost in costs]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
