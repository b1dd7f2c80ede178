"""Equal tuning for every row of a comparison: try on validation, choose, then run all seeds."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.compose import Composed, combinations, composed, conf_folder
from qat.errors import CheckpointError, SpecError, shown
from qat.spec.check import config_hash
from qat.spec.sweep import SweepSpec, TunedBy
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_json
from qat.storage.status import validation_score
from qat.sweep.draw import listed
from qat.sweep.job import Job, jobs_of


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One choice of the tuned values for one row.

    Attributes:
        row: overrides that are not tuned, without the seed.
        values: the tuned ones.
        runs: one for each tuning seed.
    """

    row: tuple[str, ...]
    values: tuple[str, ...]
    runs: tuple[Composed, ...]


def trials_of(overrides: Sequence[str], spec: SweepSpec) -> list[Trial]:
    """What is tried for the rows of a comparison: each gets every combination of the tuned values.

    A row is a combination of the overrides without the seed and the tuned keys.

    Args:
        overrides: of the command, with lists.
        spec: the sweep's options.

    Raises:
        SpecError: a tuned key has no values, or a config is wrong.
    """
    given = _given(overrides, spec)
    for key in spec.tune:
        if key not in given:
            raise SpecError(f"sweep.tune={key} has no values; give {key}=VALUE,VALUE,...")
    tuned = list(combinations([given[key] for key in spec.tune]))
    others = [o for key, o in given.items() if key not in (*spec.tune, "seed")]
    return [
        Trial(tuple(row), tuple(values), tuple(_seeded([*row, *values], spec.tune_seeds)))
        for row in combinations(others)
        for values in tuned
    ]


def runs_of(trials: Sequence[Trial]) -> list[Composed]:
    """Every run that the choice needs."""
    return [run for trial in trials for run in trial.runs]


def chosen_jobs(
    trials: Sequence[Trial], jobs: Sequence[Job], overrides: Sequence[str], spec: SweepSpec
) -> list[Job]:
    """Choose the values of each row on validation; the jobs of all seeds of the command with them.

    The values with the highest validation score of the last epoch, as `tune_by` says over the
    tuning seeds, are chosen, the first of equals; one with a run that failed is not, and a row with
    a run that was interrupted waits for the next call. tuned.json in the sweep's folder holds all
    scores.

    Args:
        trials: that were run.
        jobs: theirs.
        overrides: of the command, with lists.
        spec: the sweep's options.
    """
    by_hash = {job.hash: job for job in jobs}
    tried = {trial: [by_hash[config_hash(run.config)] for run in trial.runs] for trial in trials}
    ended = ("finished", "failed")
    unfinished = [t.row for t, own in tried.items() if any(job.state not in ended for job in own)]
    for row in dict.fromkeys(unfinished):
        print(f"tuned  {shown(','.join(row))}: not chosen yet, runs are unfinished", flush=True)
    scores = {
        trial: _score(own, spec.tune_by)
        for trial, own in tried.items()
        if trial.row not in unfinished
    }
    chosen = _chosen(scores)
    folder = jobs[0].folder.parent
    _write(folder, scores, chosen)
    seeds = _given(overrides, spec).get("seed", "seed=1")
    final = [
        composed(conf_folder(), run)
        for trial in chosen
        for run in combinations([*trial.row, *trial.values, seeds])
    ]
    return jobs_of(final, folder, any_code=spec.any_code)


def _seeded(overrides: Sequence[str], seeds: Sequence[int]) -> list[Composed]:
    return [composed(conf_folder(), [*overrides, f"seed={seed}"]) for seed in seeds]


def _given(overrides: Sequence[str], spec: SweepSpec) -> dict[str, str]:
    """Key -> override; the command's wins over the file's."""
    return {o.lstrip("+").partition("=")[0]: o for o in [*listed(spec.parameters), *overrides]}


def _score(jobs: Sequence[Job], by: TunedBy) -> float:
    """Validation score of the last epoch, mean or worst tuning seed; -inf if a run has none."""
    found = [validation_score(job.scores("last")) for job in jobs]
    scores = [-math.inf if score is None else score for score in found]
    return min(scores) if by == "worst" else sum(scores) / len(scores)


def _chosen(scores: dict[Trial, float]) -> list[Trial]:
    """The best trial of each row, in the order of the rows; rows without a finished one are out."""
    best: dict[tuple[str, ...], Trial] = {}
    for trial, score in scores.items():
        before = best.get(trial.row)
        if score > (-math.inf if before is None else scores[before]):
            best[trial.row] = trial
    return list(best.values())


def _write(folder: Path, scores: dict[Trial, float], chosen: Sequence[Trial]) -> None:
    """Print what was chosen, and keep all scores in FOLDER/tuned.json."""
    rows = {}
    for trial in chosen:
        tried = {",".join(t.values): s for t, s in scores.items() if t.row == trial.row}
        scored = {values: s if math.isfinite(s) else None for values, s in tried.items()}
        rows[",".join(trial.row)] = {"chosen": ",".join(trial.values), "validation": scored}
        told = ", ".join(f"{values} {score:.4f}" for values, score in tried.items())
        print(
            f"tuned  {shown(','.join(trial.row))}: {shown(','.join(trial.values))}  (of {told})",
            flush=True,
        )
    for row in dict.fromkeys(trial.row for trial in scores):
        if ",".join(row) not in rows:
            print(
                f"tuned  {shown(','.join(row))}: not chosen, each of its values has failed",
                flush=True,
            )
    path = folder / "tuned.json"
    write_whole(path, json.dumps(_read(path) | rows, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """What an earlier command has kept there; nothing that is damaged, which is found anew."""
    with suppress(CheckpointError):
        return read_json(path)
    return {}
