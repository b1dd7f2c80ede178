"""What a sweep keeps of the jobs that are done: never less than what it was asked to keep."""

import json

import pytest
import torch

from qat.compose import composed, conf_folder
from qat.folder_lock import only_process
from qat.lit.checkpoint_file import load, save
from qat.sweep.job import jobs_of
from qat.sweep.keeping import thin, thin_run
from qat.sweep_spec import SweepSpec

BEST, NEWEST = "best/step=00000020.ckpt", "last/step=00000034.ckpt"
ALL = {BEST, NEWEST, "last/step=00000017.ckpt", "warm_start.ckpt"}


@pytest.fixture
def checkpoints(tmp_path):
    """Of a finished run, with a file beside them that is not qat's."""
    for name in ALL:
        save({"state_dict": {"w": torch.arange(3.0)}, "name": name}, tmp_path / name)
    (tmp_path / "best" / "mine.ckpt").write_text("mine")
    return tmp_path


def kept(checkpoints):
    found = {str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*.ckpt")}
    return found - {"best/mine.ckpt"}


@pytest.mark.parametrize(("keep", "left"), [("all", ALL), ("selected", {BEST}), ("none", set())])
def test_what_is_left(checkpoints, keep, left):
    for _ in range(2):  # the second call finds it done
        thin_run(checkpoints, keep)
        assert kept(checkpoints) == left
        assert (checkpoints / "best" / "mine.ckpt").read_text() == "mine"
    for name in left:
        assert load(checkpoints / name)["name"] == name


def test_a_run_that_selects_no_epoch_keeps_its_last(checkpoints):
    (checkpoints / BEST).unlink()
    thin_run(checkpoints, "selected")
    assert kept(checkpoints) == {NEWEST}


@pytest.mark.parametrize("damaged", [BEST, NEWEST])
def test_beside_a_damaged_file_a_good_one_stays(checkpoints, damaged):
    with (checkpoints / damaged).open("r+b") as file:
        file.seek(40)
        file.write(b"\xff\xff")
    thin_run(checkpoints, "selected")
    # without the selected epoch nothing is deleted; the others are not asked for
    assert kept(checkpoints) == (ALL if damaged == BEST else {BEST})


def test_a_run_without_checkpoints_is_left_as_it_is(tmp_path):
    for keep in ("selected", "none"):
        thin_run(tmp_path / "checkpoints", keep)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("state", "method", "is_done"),
    [
        ("finished", "grid", True),
        ("pruned", "tpe", True),
        ("pruned", "grid", False),  # it is continued there
        ("failed", "grid", False),
        ("interrupted", "grid", False),
        ("running", "tpe", False),
    ],
)
def test_jobs_that_are_not_done_keep_everything(tmp_path, state, method, is_done):
    (job,) = jobs_of([composed(conf_folder(), ["quant=float"])], tmp_path)
    path = job.folder / "checkpoints" / "last" / "step=00000017.ckpt"
    save({}, path)
    content = {"state": state, "config_hash": job.hash, "metrics": {}}
    (job.folder / "status.json").write_text(json.dumps(content))
    (job.folder / "summary.json").write_text("{}")
    spec = SweepSpec(method=method, keep="none")
    with only_process(job.folder):
        thin([job], spec)
        assert path.exists(), "deleted under the lock of another process"
    thin([job], spec)
    assert path.exists() != is_done
