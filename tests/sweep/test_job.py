"""Jobs: known by their hashes, whatever their labels and however often they are asked for."""

import json

import pytest

from qat.compose import composed, conf_folder
from qat.spec.sweep import SweepSpec
from qat.storage.provenance import code_version
from qat.sweep.job import jobs_of, labels


@pytest.fixture(scope="module")
def runs():
    return [
        composed(conf_folder(), ["model=lenet5", f"seed={seed}", "training.threads=1"])
        for seed in (1, 2, 1)
    ]


def put(folder, state, **own):
    """A run folder as a run of this state leaves it; its name tells its hash."""
    folder.mkdir(parents=True)
    content = {"state": state, "config_hash": folder.name.split("-")[-2], "metrics": {}} | own
    (folder / "status.json").write_text(json.dumps(content))
    if state == "finished":
        (folder / "summary.json").write_text("{}")


def test_equal_runs_are_one_job_and_end_on_their_hashes(runs, tmp_path):
    one, two = jobs_of(runs, tmp_path)
    assert one.label == "seed=1"
    assert one.hash != two.hash
    assert one.folder.name == f"seed_1-{one.hash}-{code_version().sources}"


def test_a_folder_is_found_under_another_label(runs, tmp_path):
    old = tmp_path / f"anything-{jobs_of(runs, tmp_path)[0].hash}-{code_version().sources}"
    put(old, "finished")
    assert jobs_of(runs, tmp_path)[0].folder == old


def test_other_code_counts_only_where_it_is_allowed(runs, tmp_path):
    name = jobs_of(runs, tmp_path)[0].hash
    put(tmp_path / f"a-{name}-000000000000", "failed")
    put(tmp_path / f"b-{name}-111111111111", "finished")
    assert jobs_of(runs, tmp_path)[0].state is None
    taken = jobs_of(runs, tmp_path, any_code=True)[0]
    assert taken.folder.name.startswith("b-")
    assert taken.action(SweepSpec()) == "skip"


@pytest.mark.parametrize(
    ("state", "action", "on_request"),
    [
        (None, "start", "start"),
        ("finished", "skip", "skip"),
        ("pruned", "continue", "continue"),
        ("failed", "leave", "retry"),
        ("interrupted", "continue", "continue"),
        ("running", "continue", "continue"),
        ("waiting", "continue", "continue"),
    ],
)
def test_what_is_done_with_a_state(runs, tmp_path, state, action, on_request):
    job = jobs_of(runs, tmp_path)[0]
    if state is not None:
        put(job.folder, state)
    assert job.action(SweepSpec()) == action
    assert job.action(SweepSpec(retry=True)) == on_request


@pytest.mark.parametrize("own", [{"config_hash": "other"}, {"metrics": None}, {"metrics": []}])
def test_finished_means_with_numbers_and_of_this_config(runs, tmp_path, own):
    job = jobs_of(runs, tmp_path)[0]
    put(job.folder, "finished", **own)
    assert job.action(SweepSpec()) == "continue"


def test_finished_without_a_summary_goes_on(runs, tmp_path):
    job = jobs_of(runs, tmp_path)[0]
    put(job.folder, "finished")
    (job.folder / "summary.json").unlink()
    assert job.action(SweepSpec()) == "continue"


def test_a_status_that_was_cut_is_a_job_to_continue(runs, tmp_path):
    job = jobs_of(runs, tmp_path)[0]
    job.folder.mkdir()
    (job.folder / "status.json").write_text('{"state": "fin')
    assert job.action(SweepSpec()) == "start"  # run_job continues from a checkpoint if there is one


def test_labels_leave_out_what_all_have():
    assert labels([["a=1", "b=2"]]) == ["a=1,b=2"]
    assert labels([["a=1", "c=1"], ["a=1", "c=2"]]) == ["c=1", "c=2"]
    assert labels([["a=1"], ["a=1"]]) == ["run", "run"]


def test_a_label_that_is_no_file_name_makes_none(runs, tmp_path):
    (job,) = jobs_of(runs[:1], tmp_path, names=["../../x=[1,{a: 'b'}] " + "y" * 500])
    assert job.folder.parent == tmp_path
    assert len(job.folder.name) < 140
