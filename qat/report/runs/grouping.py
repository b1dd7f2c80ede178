"""Grouping of runs that differ by their seed only; a label tells what sets each group apart."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qat.errors import SpecError
from qat.report.runs.identity import hashed, identities_of, judged_on, title_of
from qat.report.runs.labels import differences, labels_of, sort_key
from qat.report.runs.runs import Run, finite
from qat.spec.sweep import TunedBy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs of one config.

    Attributes:
        label: what sets the group apart from the others.
        key: hash of its identity.
        runs: all of them, whatever became of them.
        identity: the config without seed and folders.
        rivals: groups that differ by a tuned key only, and that this one was chosen from.
        tried_values: of the tuned key, those that were compared, this group's among them, sorted;
            empty where nothing was tuned.
    """

    label: str
    key: str
    runs: tuple[Run, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    rivals: tuple["Group", ...] = ()
    tried_values: tuple[Any, ...] = ()

    @property
    def finished(self) -> list[Run]:
        """The finished runs by rising seed; of equal seeds, which are one experiment, the newest.

        The newest is the one whose summary.json was written last.
        """
        ended = [run for run in self.runs if run.is_finished]
        # a stable sort: of equal times the last by folder
        found = {run.seed: run for run in sorted(ended, key=lambda run: run.written)}
        return [found[seed] for seed in sorted(found)]

    @property
    def is_complete(self) -> bool:
        """Whether every seed that was begun has finished."""
        return {run.seed for run in self.runs} == {run.seed for run in self.finished}

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """Every finished run of the group and its rivals: what it took to get the numbers."""
        return tuple(run for g in (self, *self.rivals) for run in g.runs if run.is_finished)

    @property
    def tried(self) -> int:
        """Number of values of the tuned key that were compared; 0 where nothing was tuned."""
        return len(self.tried_values)

    def is_at_end(self, key: str) -> bool:
        """Whether the value of the tuned key is the lowest or the highest of several numbers."""
        sizes = [size for value in self.tried_values if (size := finite(value)) is not None]
        own = finite(self.runs[0].config.get(key))
        return len(sizes) > 1 and own in (min(sizes), max(sizes))

    @property
    def is_float(self) -> bool:
        """Whether neither weights nor activations are quantized."""
        config = self.runs[0].config
        bits = (config.get("quant.weight.bits"), config.get("quant.activation.bits"))
        return bits == (32, 32) and "peer.name" not in config

    def values(self, *keys: str) -> dict[int, float]:
        """A number of summary.json by seed, e.g. of ("last", "test_acc"), where there is one."""
        numbers = {run.seed: run.number(*keys) for run in self.finished}
        return {seed: number for seed, number in numbers.items() if number is not None}

    def validation(self, state: str) -> dict[int, float]:
        """Validation accuracy by seed, or agreement with the teacher where no label was read."""
        return self.values(state, "val_acc") or self.values(state, "val_agreement")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """Groups with the same network and the same test images, so that they can be compared.

    Attributes:
        title: data and network, and what sets the test images apart from another family's.
        groups: the float groups first, then by label.
    """

    title: str
    groups: tuple[Group, ...]


def groups_of(runs: Iterable[Run]) -> list[Group]:
    """Runs of equal config, but for seed and folders; those without a config are left out."""
    known = [run for run in runs if run.config]
    found: dict[str, Group] = {}
    for run, identity in zip(known, identities_of(known), strict=True):
        key = hashed(identity)
        group = found.get(key) or Group(label="", key=key, runs=(), identity=identity)
        found[key] = replace(group, runs=(*group.runs, run))
    return labelled(list(found.values()))


def families_of(
    runs: Iterable[Run], *, tuned_key: str | None = None, tuned_by: TunedBy = "mean"
) -> list[Family]:
    """Groups with a finished run by network and test images, each labelled among its own.

    Args:
        runs: any.
        tuned_key: see `tuned`; None compares all groups.
        tuned_by: see `tuned`.

    Raises:
        SpecError: no config has the tuned key.
    """
    known = [run for run in runs if run.config]
    if tuned_key:
        check_tuned_key(tuned_key, known)
    members: dict[tuple[str, str], list[Run]] = {}
    for run in known:
        key = title_of(run.config), hashed(judged_on(run.config))
        members.setdefault(key, []).append(run)
    families = []
    for (title, _), own in sorted(members.items()):
        groups = tuned(groups_of(own), tuned_key, tuned_by) if tuned_key else groups_of(own)
        # what never came to an end must not lengthen the labels of the others
        ended = labelled([group for group in groups if group.finished], hidden=tuned_key)
        if ended:
            families.append(Family(title=title, groups=tuple(ended)))
    return _titled(families)


def tuned(groups: Sequence[Group], key: str, by: TunedBy = "mean") -> list[Group]:
    """Of groups that differ by `key` only, the one with the highest validation accuracy.

    It is the mean over the seeds or that of the worst seed, at the last epoch: nothing is chosen by
    the test part, nor by a lucky epoch. Groups with fewer finished seeds than their fullest rival
    cannot win: one lucky seed has a higher score than several honest ones.

    Args:
        groups: of one family.
        key: dotted, e.g. optimizer.lr.
        by: mean or worst.

    Returns:
        The winners, each with its rivals and the values that it was chosen from: those of which
        no seed failed, with as many seeds as the fullest of them.
    """
    rivals: dict[str, list[Group]] = {}
    for group in groups:
        rivals.setdefault(hashed(_identity(group, key)), []).append(group)
    return labelled([_winner(own, key, by) for own in rivals.values()], hidden=key)


def labelled(groups: Sequence[Group], *, hidden: str | None = None) -> list[Group]:
    """Groups with labels that tell them apart, sorted: float first, then by label.

    Args:
        groups: of different configs.
        hidden: a key that labels leave out, as it was tuned.
    """
    bare = [replace(group.runs[0], config=_identity(group, hidden)) for group in groups]
    if hidden:
        bare = [replace(run, changed=run.changed - {hidden}) for run in bare]
    found = [replace(g, label=label) for g, label in zip(groups, labels_of(bare), strict=True)]
    return sorted(found, key=lambda group: (not group.is_float, sort_key(group.label)))


def _winner(groups: Sequence[Group], key: str, by: TunedBy) -> Group:
    best = max(groups, key=lambda group: _score(group, by))
    others = tuple(group for group in groups if group is not best)
    seeds = {group: len(group.validation("last")) for group in groups}
    # a search runs all seeds with its winner only, so that what it chose from may have fewer
    whole = [g for g in others if g.is_complete or seeds[g] >= seeds[best]]
    full = max((seeds[group] for group in whole), default=0)
    compared = [best, *(group for group in whole if 0 < full == seeds[group])]
    values = sorted((group.runs[0].config.get(key) for group in compared), key=by_size)
    return replace(best, rivals=others, tried_values=tuple(values))


def _score(group: Group, by: TunedBy) -> tuple[int, int, float]:
    scores = group.validation("last").values()
    mean = sum(scores) / len(scores) if scores else 0.0
    worst = min(scores, default=0.0)
    return len(scores), len(group.finished), worst if by == "worst" else mean


def _identity(group: Group, without: str | None) -> dict[str, Any]:
    return {key: value for key, value in group.identity.items() if key != without}


def _titled(families: Sequence[Family]) -> list[Family]:
    """The families with the test images in their titles, where only these tell them apart."""
    found = []
    for family in families:
        alike = [other for other in families if other.title == family.title]
        told = differences([judged_on(other.groups[0].runs[0].config) for other in alike])
        own = told[alike.index(family)] if len(alike) > 1 else ""
        found.append(replace(family, title=", ".join(filter(None, (family.title, own)))))
    return found


def check_tuned_key(key: str, runs: Sequence[Run]) -> None:
    """Refuse a key that no run has.

    Args:
        key: dotted, e.g. optimizer.lr.
        runs: with a config each; without any there is nothing to check.

    Raises:
        SpecError: no config has the key.
    """
    known = sorted({name for run in runs for name in run.config})
    if not runs or key in known:
        return
    close = [name for name in known if name.endswith(f".{key}")]
    close = close or difflib.get_close_matches(key, known, n=1)
    mean = f"did you mean {close[0]}?" if close else "give a dotted key, e.g. optimizer.lr"
    raise SpecError(f"tuned={key} is a key of no run's config; {mean}")


def by_size(value: Any) -> tuple[bool, float, str]:
    """Sorts values: numbers by their size, before all others."""
    size = finite(value)
    return size is None, size or 0.0, str(value)
