"""What a sweep keeps of the jobs that are done: never less than what it was asked to keep."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qat.compose import composed, conf_folder
from qat.errors import CheckpointError
from qat.spec.sweep import SweepSpec
from qat.storage.checkpoint import (
    load,
    save,
)
from qat.storage.lock import only_process
from qat.sweep import run, tuned
from qat.sweep.job import jobs_of
from qat.sweep.thinning import superfluous, thin
from support.products import mostly_slow

BEST, NEWEST = "best/step=00000020.ckpt", "last/step=00000034.ckpt"
ALL = {BEST, NEWEST, "last/step=00000017.ckpt", "warm_start.ckpt"}
SELECTED = {"last": {"val_acc": 0.5}, "selected": {"val_acc": 0.6}}


def done(job, state="finished", metrics=SELECTED):
    """A run folder as a run of this state leaves it, with a file beside that is not qat's."""
    checkpoints = job.folder / "checkpoints"
    for name in ALL:
        (checkpoints / name).parent.mkdir(parents=True, exist_ok=True)
        save({"state_dict": {"w": torch.arange(3.0)}, "name": name}, checkpoints / name)
    (checkpoints / "best" / "mine.ckpt").write_text("mine")
    content = {"state": state, "config_hash": job.hash, "metrics": metrics}
    (job.folder / "status.json").write_text(json.dumps(content))
    (job.folder / "summary.json").write_text("{}")
    return job


@pytest.fixture(scope="module")
def float_run():
    return composed(conf_folder(), ["quant=float"])


@pytest.fixture
def job(float_run, tmp_path):
    (job,) = jobs_of([float_run], tmp_path)
    return done(job)


def kept(job):
    assert (job.folder / "checkpoints" / "best" / "mine.ckpt").read_text() == "mine"
    checkpoints = job.folder / "checkpoints"
    found = {path.relative_to(checkpoints).as_posix() for path in checkpoints.rglob("*.ckpt")}
    return found - {"best/mine.ckpt"}


@pytest.mark.parametrize(("keep", "left"), [("all", ALL), ("selected", {BEST}), ("none", set())])
def test_what_is_left(job, keep, left):
    for _ in range(2):  # the second call finds it done
        thin([job], SweepSpec(keep=keep))
        assert kept(job) == left
    for name in left:
        assert load(job.folder / "checkpoints" / name)["name"] == name


def test_a_run_that_selected_no_epoch_keeps_its_last(job):
    done(job, metrics=SELECTED | {"selected": None})
    (job.folder / "checkpoints" / BEST).unlink()
    thin([job], SweepSpec(keep="selected"))
    assert kept(job) == {NEWEST}


def test_where_the_selected_epoch_is_missing_the_others_stay(job):
    (job.folder / "checkpoints" / BEST).unlink()
    thin([job], SweepSpec(keep="selected"))
    assert kept(job) == ALL - {BEST}


def test_where_the_selected_epoch_is_damaged_the_others_stay_and_it_is_told(job, capsys):
    with (job.folder / "checkpoints" / BEST).open("r+b") as file:
        file.seek(40)
        file.write(b"\xff\xff")
    with pytest.raises(CheckpointError):
        superfluous(job, "selected")
    thin([job], SweepSpec(keep="selected"))
    assert kept(job) == ALL
    assert "sha256" in capsys.readouterr().out


def test_what_cannot_be_deleted_is_told_and_stops_nothing(job, monkeypatch, capsys):
    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    thin([job], SweepSpec(keep="none"))
    assert "Permission denied" in capsys.readouterr().out
    assert kept(job) == ALL


def test_a_folder_in_use_waits_for_the_next_call(job, capsys):
    with only_process(job.folder):
        thin([job], SweepSpec(keep="none"))
    assert kept(job) == ALL
    assert "in use" in capsys.readouterr().out
    thin([job], SweepSpec(keep="none"))
    assert kept(job) == set()


@pytest.mark.parametrize(
    ("state", "method", "selected", "none"),
    [
        ("finished", "grid", {BEST}, set()),
        ("pruned", "tpe", ALL, set()),
        ("pruned", "grid", ALL, ALL),  # it is continued there
        ("failed", "grid", ALL, ALL),
        ("interrupted", "grid", ALL, ALL),
        ("running", "tpe", ALL, ALL),
    ],
)
def test_what_somebody_may_go_on_with_stays(job, state, method, selected, none):
    done(job, state)
    thin([job], SweepSpec(method=method, keep="selected"))
    assert kept(job) == selected
    thin([job], SweepSpec(method=method, keep="none"))
    assert kept(job) == none


def test_a_later_call_thins_the_chosen_runs_of_a_tuned_sweep_too(tmp_path):
    spec = SweepSpec(
        method="tuned", keep="none", tune_seeds=(1,), parameters={"optimizer.lr": [0.1]}
    )
    overrides = ["quant=float", "seed=1,2", "training.threads=1"]
    trials = tuned.trials_of(overrides, spec)
    tried = [done(job) for job in jobs_of(tuned.runs_of(trials), tmp_path)]
    chosen = [done(job) for job in tuned.chosen_jobs(trials, tried, overrides, spec)]
    assert len(chosen) == 2
    assert run.run_sweep(overrides, replace(spec, list=True), tmp_path)
    assert all(kept(job) == ALL for job in chosen)
    assert run.run_sweep(overrides, spec, tmp_path)
    assert all(kept(job) == set() for job in chosen)


@pytest.mark.parametrize("state", mostly_slow(["running", "waiting", "interrupted"], day=(2,)))
def test_a_row_waits_until_all_of_its_trials_have_ended(tmp_path, capsys, state):
    spec = SweepSpec(method="tuned", tune_seeds=(1,), parameters={"optimizer.lr": [0.1, 0.2]})
    overrides = ["quant=float,bcgd_w1a4", "seed=1,2", "training.threads=1"]
    trials = tuned.trials_of(overrides, spec)
    *ended, last = jobs_of(tuned.runs_of(trials), tmp_path)
    for job in ended:
        done(job)
    done(last, state, metrics=None)
    chosen = tuned.chosen_jobs(trials, [*ended, last], overrides, spec)
    assert {job.run.config["quant"]["rule"]["name"] for job in chosen} == {"float_only"}
    assert "quant=bcgd_w1a4,training.threads=1: not chosen yet" in capsys.readouterr().out


def test_the_values_with_the_best_last_epoch_are_chosen_and_of_equals_the_first(tmp_path):
    spec = SweepSpec(method="tuned", tune_seeds=(1,), parameters={"optimizer.lr": [0.1, 0.2, 0.4]})
    overrides = ["quant=float", "seed=1", "training.threads=1"]
    trials = tuned.trials_of(overrides, spec)
    jobs = jobs_of(tuned.runs_of(trials), tmp_path)
    for job, (last, selected) in zip(jobs, [(0.5, 0.9), (0.7, 0.7), (0.7, 0.8)], strict=True):
        done(job, metrics={"last": {"val_acc": last}, "selected": {"val_acc": selected}})
    (chosen,) = tuned.chosen_jobs(trials, jobs, overrides, spec)
    assert chosen.run.config["optimizer"]["lr"] == 0.2


@pytest.mark.parametrize(("by", "rate"), [("mean", 0.1), ("worst", 0.2)])
def test_values_are_chosen_by_the_mean_of_the_seeds_or_by_the_worst_one(by, rate, tmp_path):
    spec = SweepSpec(
        method="tuned", tune_seeds=(1, 2), tune_by=by, parameters={"optimizer.lr": [0.1, 0.2]}
    )
    overrides = ["quant=float", "seed=1", "training.threads=1"]
    trials = tuned.trials_of(overrides, spec)
    jobs = jobs_of(tuned.runs_of(trials), tmp_path)
    for job, score in zip(jobs, (0.99, 0.70, 0.82, 0.81), strict=True):
        done(job, metrics={"last": {"val_acc": score}, "selected": {"val_acc": score}})
    (chosen,) = tuned.chosen_jobs(trials, jobs, overrides, spec)
    assert chosen.run.config["optimizer"]["lr"] == rate
