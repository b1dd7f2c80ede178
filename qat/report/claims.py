"""Claims that one network is better than another, held against seeds that both have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qat.errors import SpecError
from qat.report.comparison import SIGNIFICANT, State
from qat.report.grouping import Group
from qat.report.statistics import Difference, holm, paired_difference

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
