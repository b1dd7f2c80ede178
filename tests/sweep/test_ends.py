"""How jobs end, whatever ended them: their states, what is told of them, what is read of them."""

import json
import multiprocessing
import os
import signal

import pytest

from qat.compose import composed, conf_folder
from qat.errors import QatError
from qat.spec.sweep import SweepSpec
from qat.storage.lock import only_process
from qat.storage.status import read_status
from qat.sweep import tuned, worker
from qat.sweep.job import jobs_of, mark_abandoned
from qat.sweep.pool import _settle
from qat.sweep.progress import closing_lines, validation_scores
from qat.sweep.run import run_sweep
from qat.sweep.worker import EXIT_BUSY


@pytest.fixture
def job(tmp_path):
    (job,) = jobs_of([composed(conf_folder(), ["quant=float"])], tmp_path)
    job.folder.mkdir()
    return job


def put(job, **content):
    content = {"config_hash": job.hash, **content}
    (job.folder / "status.json").write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    ("code", "state", "told"),
    [
        (-9, "interrupted", "signal 9"),
        (-15, "interrupted", "15"),
        (255, "interrupted", "server of its process"),
        (1, "failed", "train.log"),
    ],
)
def test_an_end_before_the_job_could_write_replaces_the_end_of_an_earlier_start(
    job, code, state, told
):
    before = put(job, state="failed", error="the loss is not finite")
    _settle(job, code, before)
    assert read_status(job.folder)["state"] == state
    assert told in read_status(job.folder)["error"]


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_what_the_job_has_written_stands(job, state):
    before = put(job, state="running")
    written = put(job, state=state, error="its own words")
    _settle(job, 1, before)
    assert read_status(job.folder) == written


def test_a_killed_job_that_said_it_was_running_is_interrupted(job):
    before = put(job, state="interrupted", error="Ctrl-C")
    put(job, state="running")
    _settle(job, -9, before)
    assert read_status(job.folder)["state"] == "interrupted"
    assert "signal 9" in read_status(job.folder)["error"]


@pytest.mark.parametrize("code", [EXIT_BUSY, -15])
def test_the_state_of_a_folder_in_use_is_its_owner_s(job, code, monkeypatch):
    monkeypatch.setattr("qat.sweep.pool.LEAVING", 0.0)
    before = put(job, state="running", error=None)
    with only_process(job.folder):
        _settle(job, code, before)
    assert read_status(job.folder) == before
    assert f"{job.label}: running, in another process" in "\n".join(
        closing_lines([job], job.folder)
    )


def test_a_finished_run_without_its_numbers_is_no_end(job):
    before = put(job, state="finished", error=None, metrics={"last": {}})
    assert f"{job.label}: interrupted" in "\n".join(closing_lines([job], job.folder))
    _settle(job, -9, before)
    assert read_status(job.folder)["state"] == "interrupted"


def test_what_says_it_runs_and_does_not_is_interrupted(job):
    put(job, state="running", error=None)
    with only_process(job.folder):
        mark_abandoned([job], "killed")
        assert job.state == "running"
    mark_abandoned([job], "killed")
    assert read_status(job.folder)["state"] == "interrupted"


def test_a_job_that_an_orphan_has_finished_is_not_run_again(job, monkeypatch):
    monkeypatch.setattr("qat.train.run.run_job", lambda *_: pytest.fail("it ran again"))
    put(job, state="finished", error=None, metrics={"last": {"val_acc": 0.5}})
    (job.folder / "summary.json").write_text("{}")
    assert worker._run(job.run, job.folder) == 0


def test_a_job_whose_sweep_ends_is_asked_to_save_and_stop(monkeypatch):
    sent = []
    monkeypatch.setattr("os.kill", lambda *words: sent.append(words))
    alive, sweep = multiprocessing.Pipe(duplex=False)
    sweep.close()
    worker._stop_with(alive)
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_folder_with_a_running_sweep_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("qat.sweep.run._run_all", lambda *_: pytest.fail("a second one runs"))
    monkeypatch.setattr("qat.sweep.run.rehearse", lambda _: None)  # starts a server, for seconds
    with only_process(tmp_path), pytest.raises(QatError, match="in use by another process"):
        run_sweep(["quant=float", "training.threads=1"], SweepSpec(), tmp_path)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("epoch,val/acc\n0,0.5\n1,0.75\n", {1: 0.5, 2: 0.75}),
        ("epoch,val/acc\n0,0.5\n1,0.7", {1: 0.5}),  # as a look between two writes finds it
        ("epoch,val/acc\n0,0.5\n1,\0\0\0\n", {1: 0.5}),  # a tail after a power cut
        ("epoch,val/acc\n0,0.5\n\0\n1\n,0.4\nx,0.4\n", {1: 0.5}),
        ("epoch,train/loss,val/agreement\n0,1.0,\n0,,0.25\n", {1: 0.25}),
        ("e\0poc,val/acc\n0,0.5\n", {}),
        ("", {}),
        ("\0\0", {}),
    ],
)
def test_a_damaged_table_costs_its_rows_only(tmp_path, text, scores):
    (tmp_path / "metrics.csv").write_text(text)
    assert validation_scores(tmp_path) == scores


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"other": 1}'])
def test_tuned_json_is_found_anew_where_it_was_damaged(tmp_path, text, capsys):
    if text is not None:
        (tmp_path / "tuned.json").write_text(text)
    spec = SweepSpec(method="tuned", parameters={"optimizer.lr": [0.1, 0.2]}, tune_seeds=[1])
    one, other = tuned.trials_of(["quant=float"], spec)
    tuned._write(tmp_path, {one: 0.5, other: 0.75}, [other])
    told = json.loads((tmp_path / "tuned.json").read_text())
    assert told["quant=float"]["chosen"] == "optimizer.lr=0.2"
    assert ("other" in told) == (text == '{"other": 1}')
    assert "optimizer.lr=0.1 0.5000, optimizer.lr=0.2 0.7500" in capsys.readouterr().out


def test_a_row_whose_values_all_failed_is_named(tmp_path, capsys):
    spec = SweepSpec(method="tuned", parameters={"optimizer.lr": [0.1]}, tune_seeds=[1])
    (trial,) = tuned.trials_of(["quant=float"], spec)
    tuned._write(tmp_path, {trial: float("-inf")}, [])
    assert "quant=float: not chosen, each of its values has failed" in capsys.readouterr().out


def test_an_added_key_is_one_of_a_row_too():
    spec = SweepSpec(method="tuned", parameters={"optimizer.lr": [0.1]}, tune_seeds=[1])
    (trial,) = tuned.trials_of(["quant=float", "+optimizer.foreach=false"], spec)
    assert trial.runs[0].config["optimizer"]["foreach"] is False
