"""Runs that differ by their seed only are one group; its label tells what sets it apart."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qat.report.labels import labels_of, sort_key
from qat.report.runs import Run, read_run

# neither changes what is trained: where files lie, what is written down, how it is continued
_IGNORED = {
    *("seed", "resume", "resume_allow", "audit_only", "allow_targets"),
    *("data.download", "data.workers", "trainer.enable_progress_bar"),
    *("trainer.log_every_n_steps", "training.checkpoint_every", "training.threads"),
}
_IGNORED_SECTIONS = {"logger", "callbacks", "hydra", "sweep"}
# keys that may name a run folder; two folders of equal configs are the same start
_ORIGINS = ("init_from", "distill.teacher")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs of one config.

    Attributes:
        label: what sets the group apart from the others.
        key: hash of the config without seed and folders.
        runs: all of them, whatever became of them.
        tried: number of values of a tuned key that this group was chosen from.
    """

    label: str
    key: str
    runs: tuple[Run, ...]
    tried: int = 1

    @property
    def finished(self) -> list[Run]:
        """The finished runs by rising seed; of equal seeds, which are one experiment, the last."""
        found = {run.seed: run for run in self.runs if run.is_finished}
        return [found[seed] for seed in sorted(found)]

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
    """Groups on the same data with the same network, so that they can be compared.

    Attributes:
        title: data and network.
        groups: the float groups first, then by label.
    """

    title: str
    groups: tuple[Group, ...]


def groups_of(runs: Iterable[Run]) -> list[Group]:
    """Runs of equal config, but for seed and folders; those without a config are left out."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            found.setdefault(_hash(identity_of(run)), []).append(run)
    return labelled([Group(label="", key=k, runs=tuple(own)) for k, own in found.items()])


def families_of(runs: Iterable[Run], *, tuned_key: str | None = None) -> list[Family]:
    """Groups with a finished run by data set and network, each labelled among its own.

    Args:
        runs: any.
        tuned_key: see `tuned`; None compares all groups.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            members.setdefault(_title(run.config), []).append(run)
    families = []
    for title, own in sorted(members.items()):
        groups = tuned(groups_of(own), tuned_key) if tuned_key else groups_of(own)
        # what never came to an end must not lengthen the labels of the others
        ended = labelled([group for group in groups if group.finished], hidden=tuned_key)
        if ended:
            families.append(Family(title=title, groups=tuple(ended)))
    return families


def tuned(groups: Sequence[Group], key: str) -> list[Group]:
    """Of groups that differ by `key` only, the one with the highest mean validation accuracy.

    The mean is over the seeds, at the last epoch: nothing is chosen by the test part, nor by a
    lucky epoch. Groups with fewer finished seeds than their fullest rival cannot win: one lucky
    seed has a higher mean than several honest ones.

    Args:
        groups: of one family.
        key: dotted, e.g. optimizer.lr.

    Returns:
        The winners, each with the number of values that were tried.
    """
    rivals: dict[str, list[Group]] = {}
    for group in groups:
        rivals.setdefault(_hash(_identity(group, key)), []).append(group)
    winners = [replace(max(own, key=_score), tried=len(own)) for own in rivals.values()]
    return labelled(winners, hidden=key)


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


def identity_of(run: Run) -> dict[str, Any]:
    """What determines a run's numbers, but for its seed."""
    config = {
        key: value
        for key, value in run.config.items()
        if key not in _IGNORED and key.partition(".")[0] not in _IGNORED_SECTIONS
    }
    if config.get("data.name") != "image_folder":  # elsewhere the name says what the images are
        config.pop("data.root", None)
    for key in _ORIGINS:
        if config.get(key) is not None:
            config[key] = _origin(str(config[key]))
    return config


def _origin(path: str) -> str:
    """A run folder, or a file in one, by its config, so that each seed may have its own."""
    for folder in (Path(path), *Path(path).parents[:3]):
        if (folder / ".hydra" / "config.yaml").is_file():
            source = read_run(folder)
            return f"{source.choices.get('quant', 'run')}-{_hash(identity_of(source))[:6]}"
    return path


def _identity(group: Group, without: str | None) -> dict[str, Any]:
    identity = identity_of(group.runs[0])
    if without is not None:
        identity.pop(without, None)
    return identity


def _score(group: Group) -> tuple[int, float]:
    scores = group.validation("last").values()
    return len(scores), sum(scores) / len(scores) if scores else 0.0


def _hash(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _title(config: Mapping[str, Any]) -> str:
    target = str(config.get("model._target_", "network")).rpartition(".")[2]
    return f"{config.get('data.name', 'data')}, {config.get('model.name', target)}"
