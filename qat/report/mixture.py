"""What makes the runs of a family hard to compare: other code, other machines, doubled seeds."""

from collections import Counter
from collections.abc import Sequence

from qat.report.grouping import Group
from qat.report.labels import shown

# keys of summary.json -> what differs, in words
_SOURCES = {
    ("code", "sources"): "versions of the code",
    ("threads",): "thread counts",
    ("versions", "torch"): "versions of torch",
}
_UNKNOWN = "unknown"
_MOST_NAMED = 8


def warnings_of(groups: Sequence[Group]) -> list[str]:
    """Sentences on what the numbers of a family mix; none if they mix nothing.

    Args:
        groups: of one family; the rivals of a tuned one are part of the comparison.
    """
    runs = [run for group in groups for own in (group, *group.rivals) for run in own.finished]
    found = []
    for keys, words in _SOURCES.items():
        values = (run.value(*keys) for run in runs)
        counts = Counter(_UNKNOWN if value is None else shown(value) for value in values)
        if len(counts) > 1:
            named = _listed([f"{value} ({count} runs)" for value, count in counts.most_common()])
            found.append(
                f"The runs were made with {len(counts)} {words}: {named}. A difference between "
                "networks may be a difference between these."
            )
    repeated = [
        f"{group.label or own.key} seed {seed}"
        for group in groups
        for own in (group, *group.rivals)
        for seed in _repeated(own)
    ]
    if repeated:
        found.append(
            f"Several finished runs have the same config and seed: {_listed(repeated)}. Of each "
            "the run whose summary.json was written last counts, the others enter no number."
        )
    return found


def _repeated(group: Group) -> list[int]:
    counts = Counter(run.seed for run in group.runs if run.is_finished)
    return sorted(seed for seed, count in counts.items() if count > 1)


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more
