"""Experiment result: claims with their evidence, a table, curves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["held", "not held", "held with a condition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a paper, and what came out.

    Attributes:
        text: the statement, with its source.
        verdict: held, not held, or held with a condition.
        evidence: the numbers, and the condition if there is one.
    """

    text: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of one experiment.

    Attributes:
        name: of the experiment, snake_case.
        claims: in the order of the paper.
        columns: names of the table's columns, with units.
        rows: the table, plain numbers and texts.
        curves: what the figure shows, plain lists and numbers by name.
    """

    name: str
    claims: tuple[Claim, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    curves: Mapping[str, Any] = field(default_factory=dict)


def verdict(held: bool, *, condition: bool = False) -> Verdict:
    """The verdict of a check; `condition` says that it holds only as the evidence tells."""
    if not held:
        return "not held"
    return "held with a condition" if condition else "held"
