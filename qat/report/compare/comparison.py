"""Comparison of groups beside a reference: accuracy with its spread, paired differences, costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qat.errors import SpecError
from qat.report.compare.statistics import (
    Difference,
    Summary,
    holm,
    mean,
    paired_difference,
    summarize,
)
from qat.report.runs.grouping import Group

State = Literal["last", "selected"]
Verdict = Literal["reference", "higher", "lower", "within noise", "one seed", "no common seed"]
# a difference counts as one if its corrected p is below
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One group of a comparison; accuracies are fractions 0..1.

    Attributes:
        group: of runs.
        test: accuracy on the test part.
        validation: accuracy on the validation part, or agreement with a teacher.
        difference: of the test accuracy to the reference's, paired by seed; None for the
            reference itself and where no seed is common.
        p: of that difference, corrected for all rows of the comparison.
        is_reference: whether the others are compared with this one.
    """

    group: Group
    test: Summary | None
    validation: Summary | None
    difference: Difference | None
    p: float | None
    is_reference: bool

    @property
    def verdict(self) -> Verdict:
        """The difference in a word; "within noise" is no proof of equality."""
        if self.is_reference:
            return "reference"
        if self.difference is None:
            return "no common seed"
        if self.difference.n < 2:
            return "one seed"
        if self.p is None or self.p >= SIGNIFICANT:
            return "within noise"
        return "higher" if self.difference.mean > 0 else "lower"

    def cost(self, key: str) -> float | None:
        """Mean of a number of summary.json over the runs, e.g. bytes, bops, wall_seconds."""
        values = list(self.group.values(key).values())
        return mean(values) if values else None


def compare(
    groups: Sequence[Group], *, reference: str | None = None, state: State = "last"
) -> list[Row]:
    """Every group beside the reference; p is corrected over the rows (Holm).

    Args:
        groups: of one family.
        reference: label of a group; None, or a label that no group has, takes the first float
            group, else the first one.
        state: the epoch whose weights are judged: the last, or the one selected on validation.
    """
    if not groups:
        return []
    base = reference_of(groups, reference)
    rows = [_row(group, base, state) for group in groups]
    corrected = holm([row.difference.p if row.difference else None for row in rows])
    return [replace(row, p=p) for row, p in zip(rows, corrected, strict=True)]


def reference_of(groups: Sequence[Group], label: str | None) -> Group:
    """The group with this label, else the first float group, else the first."""
    named = [group for group in groups if group.label == label]
    floats = [group for group in groups if group.is_float]
    return [*named, *floats, *groups][0]


def _row(group: Group, base: Group, state: State) -> Row:
    own, other = group.values(state, "test_acc"), base.values(state, "test_acc")
    seeds = sorted(own.keys() & other.keys())
    pairs = [own[seed] for seed in seeds], [other[seed] for seed in seeds]
    return Row(
        group=group,
        test=summarize(list(own.values())),
        validation=summarize(list(group.validation(state).values())),
        difference=None if group is base else paired_difference(*pairs),
        p=None,
        is_reference=group is base,
    )


Reading = Literal["holds", "the opposite holds", "within noise", "not tested"]


_SIGN = " > "


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That one group is better than another.

    Attributes:
        better: label of the group that is said to be better.
        worse: label of the other.
        difference: of their test accuracies, paired by seed; None without a common seed.
        p: two-sided, corrected for all claims that are read together (Holm).
    """

    better: str
    worse: str
    difference: Difference | None
    p: float | None

    @property
    def reading(self) -> Reading:
        """What the seeds say; "within noise" is no proof that the claim is wrong."""
        if self.difference is None or self.p is None:
            return "not tested"
        if self.p >= SIGNIFICANT:
            return "within noise"
        return "holds" if self.difference.mean > 0 else "the opposite holds"


def claims_of(groups: Sequence[Group], texts: Sequence[str], *, state: State) -> list[Claim]:
    """Claims `BETTER > WORSE` about the groups of one family, tested together.

    Args:
        groups: of a family.
        texts: two labels with " > " between them.
        state: epoch whose weights are judged.

    Raises:
        SpecError: a text is no claim, or names no group.
    """
    known = {group.label: group for group in groups}
    pairs = [_pair(text, known) for text in texts]
    found = [_claim(known[better], known[worse], state) for better, worse in pairs]
    corrected = holm([claim.p for claim in found])
    return [replace(claim, p=p) for claim, p in zip(found, corrected, strict=True)]


def _pair(text: str, known: dict[str, Group]) -> tuple[str, str]:
    better, sign, worse = text.partition(_SIGN)
    if not sign:
        raise SpecError(f"claims must hold 'LABEL > LABEL'; got {text!r}")
    for label in (better.strip(), worse.strip()):
        if label not in known:
            raise SpecError(f"claims: {label!r} is no network here; there are {'; '.join(known)}")
    return better.strip(), worse.strip()


def _claim(better: Group, worse: Group, state: State) -> Claim:
    own, other = better.values(state, "test_acc"), worse.values(state, "test_acc")
    seeds = sorted(own.keys() & other.keys())
    found = paired_difference([own[s] for s in seeds], [other[s] for s in seeds])
    return Claim(
        better=better.label, worse=worse.label, difference=found, p=found.p if found else None
    )
