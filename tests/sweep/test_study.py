"""A study: its verdicts outlive the process that reached them."""

from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from qat.spec.sweep import SweepSpec
from qat.sweep.study import Study
from support.products import mostly_slow

SPEC = SweepSpec(
    method="tpe", parameters={"optimizer.lr": {"low": 0.01, "high": 0.1}}, prune_after=2
)


def opened(folder):
    return Study(folder, SPEC, "name")


@pytest.fixture
def study(tmp_path):
    """Seven finished trials of three epochs, at 0.5, and one that runs."""
    study = opened(tmp_path)
    for _ in range(7):
        trial = study.ask()
        study.report(trial, {1: 0.5, 2: 0.5, 3: 0.5})
        study.tell(trial, 0.5, pruned=False)
    study.ask()
    return study


def running(study):
    (trial,) = study.unfinished()
    return trial


def test_a_trial_below_the_median_is_pruned_after_the_epochs_every_job_gets(study):
    trial = running(study)
    assert study.prunes(trial, {1: 0.1}) is None
    assert study.prunes(trial, {1: 0.1, 2: 0.6}) is None
    assert study.prunes(trial, {1: 0.1, 2: 0.6, 3: 0.1}) is None  # its best epoch counts
    assert study.prunes(study.ask(), {1: 0.1, 2: 0.2, 3: 0.3}) == (2, 0.2)


@pytest.mark.parametrize("left", [{1: 0.1, 2: 0.2}, {1: 0.1}, {}])  # of metrics.csv
def test_a_verdict_outlives_a_kill_before_it_was_acted_on(study, tmp_path, left):
    assert study.prunes(running(study), {1: 0.1, 2: 0.2}) == (2, 0.2)
    again = opened(tmp_path)
    assert again.prunes(running(again), left) == (2, 0.2)


def test_draws_depend_on_seed_and_results_whatever_is_interrupted(tmp_path):
    parameters = {"a": {"low": 0.0, "high": 1.0}, "b": {"low": 0.0, "high": 1.0}, "c": ["x", "y"]}
    spec = SweepSpec(method="tpe", parameters=parameters)
    whole, found = Study(tmp_path, spec, "whole"), []
    for number in range(9):  # TPE learns from the sixth on
        trial = whole.ask()
        found.append(trial.params)
        whole.tell(trial, trial.params["a"] + number / 100, pruned=False)
    assert len({str(values) for values in found}) == 9
    for number in range(9):
        # killed after one value was drawn, and opened again
        started = Study(tmp_path, spec, "killed")
        raw = started._study.ask()
        first = SweepSpec(method="tpe", parameters={"a": parameters["a"]})
        started._spec = first
        started.overrides(raw)
        again = Study(tmp_path, spec, "killed")
        trial = running(again)
        again.overrides(trial)
        assert trial.params == found[number]
        again.tell(trial, trial.params["a"] + number / 100, pruned=False)


def test_a_retry_that_was_enqueued_and_no_more_is_made_once(study, tmp_path):
    study.tell(running(study), None, pruned=False)
    (failed,) = study.failed()
    study._study.enqueue_trial(failed.params, user_attrs={"again": failed.number})
    again = opened(tmp_path)
    assert [t.number for t in again.failed()] == [failed.number]
    assert again.ask_again(failed).params == failed.params
    assert again.failed() == []
    assert len(again._found()) == 9


def test_a_trial_that_does_well_is_not_pruned_by_looking_again(study, tmp_path):
    scores = {1: 0.6, 2: 0.7}
    assert study.prunes(running(study), scores) is None
    again = opened(tmp_path)
    assert again.prunes(running(again), {**scores, 3: 0.8}) is None


def test_epochs_are_reported_once(study):
    trial = running(study)
    study.report(trial, {1: 0.6})
    study.report(trial, {1: 0.9, 2: 0.7})
    assert study._found()[trial.number].intermediate_values == {1: 0.6, 2: 0.7}


def test_failed_trials_are_known_until_they_were_asked_for_again(study):
    study.tell(running(study), None, pruned=False)
    (failed,) = study.failed()
    before = study.asked
    again = study.ask_again(failed)
    assert again.params == failed.params
    assert study.failed() == []
    assert study.asked == before


@pytest.mark.parametrize(
    ("name", "is_relative"),
    mostly_slow(
        list(
            product(["a?b", "a%20b", "a#b", "a&b=c", "a{b}", "a b", "名前", "a@b:c"], [False, True])
        ),
        day={0, 3, 12},
    ),
)
def test_a_study_lies_in_its_folder_whatever_that_is_called(
    tmp_path, monkeypatch, name, is_relative
):
    monkeypatch.chdir(tmp_path)
    folder = Path(name) if is_relative else tmp_path / name
    folder.mkdir()
    first = opened(folder)
    first.tell(first.ask(), 0.5, pruned=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["optuna.db"]
    assert opened(folder).drawn() == first.drawn()
