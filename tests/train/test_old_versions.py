"""What was made before the rooms is opened: finished and stopped runs, a packed file, a sweep.

The files in tests/recorded/v0.1.0 were made by commit 3ae10c8, before the modules moved.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import qat
from qat.commands import evaluate
from qat.commands.export import main as export
from qat.compose import composed, conf_folder
from qat.errors import CheckpointError
from qat.spec import numbers
from qat.spec.check import config_hash
from support.real_run import PLAIN, train

DATA = Path(__file__).parents[1] / "recorded" / "v0.1.0"
SMALL = (
    "model=lenet5", "trainer.max_epochs=3", "warm_start.epochs=1", "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "training.threads=1",
    "trainer.enable_progress_bar=false", *PLAIN,
)  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA, tmp_path / "old")
    return tmp_path / "old"


AS_SAVED = pytest.param("as it was saved", marks=pytest.mark.slow)


@pytest.fixture(params=[AS_SAVED, "before some of today's keys"])
def config_of(request):
    """Take keys out of a run's config, as if they had come to conf/ later."""

    def change(run):
        if request.param == "as it was saved":
            return
        path = run / ".hydra" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        del config["training"]["bn_reestimate"], config["quant"]["activation"]["shift"]
        del config["model"]["norm_affine"], config["trainer"]["deterministic"], config["init_from"]
        path.write_text(yaml.safe_dump(config))

    return change


def test_a_run_is_evaluated_as_it_was(folder, config_of, capsys):
    config_of(folder / "finished")
    net, spec = qat.load_trained(folder / "finished")
    assert len(net[0].weight.unique()) == 2
    assert spec.weight.bits == 1
    evaluate.main([f"model={folder / 'finished'},{folder / 'packed.safetensors'}"])
    told = capsys.readouterr().out
    assert told.count("0.0975") >= 2, told  # test accuracy of the run and of its packed file


def test_a_run_is_exported_to_the_weights_of_its_time(folder, config_of, capsys):
    config_of(folder / "finished")
    export([f"run={folder / 'finished'}"])
    made = folder / "finished" / "export" / "packed.safetensors"
    before, after = (
        qat.load_packed(path).net.state_dict() for path in (DATA / "packed.safetensors", made)
    )
    assert before.keys() == after.keys()
    assert all(bool((before[key] == after[key]).all()) for key in before)


@pytest.mark.slow
def test_a_run_teaches_and_starts_a_fine_tuning(folder, config_of, tmp_path):
    config_of(folder / "finished")
    run = folder / "finished"
    train(*SMALL, "distill=kd", f"distill.teacher={run}", "trainer.max_epochs=2",
          "hydra.run.dir=student", cwd=tmp_path)  # fmt: skip
    teacher = json.loads((tmp_path / "student" / "summary.json").read_text())["teacher"]
    assert teacher["origin"].startswith(str(run))
    for start in (run, folder / "packed.safetensors"):
        train(*SMALL, f"init_from={start}", "warm_start.epochs=0", "trainer.max_epochs=1",
              f"hydra.run.dir={start.stem}_tuned", cwd=tmp_path)  # fmt: skip


def test_a_stopped_run_goes_on_to_the_end(folder, config_of, tmp_path):
    run = folder / "stopped"
    config_of(run)
    saved = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    train(f"resume={run}", cwd=tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    before = rows(DATA / "stopped" / "metrics.csv")
    wanted, found = rows(DATA / "undisturbed.csv"), rows(run / "metrics.csv")
    assert found[: len(before)] == before
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):  # other processors move the last bits
        for key, value in row.items():
            assert (value == other[key] == "") or float(value) == pytest.approx(
                float(other[key]), abs=0.05
            )
    assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text()) == saved


def test_a_stopped_run_is_not_changed_unasked(folder, tmp_path, monkeypatch, capsys):
    run = folder / "stopped"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={run}", "optimizer.lr=0.5"])
    from qat.commands.train import main

    with pytest.raises(SystemExit):
        main()
    assert "optimizer.lr: 0.02 -> 0.5" in capsys.readouterr().err


def test_a_config_that_would_be_looked_up_is_refused(folder, monkeypatch):
    path = folder / "finished" / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("root: null", "root: ${oc.env:HOME}"))
    with pytest.raises(CheckpointError, match=r"data\.root=\$\{oc\.env:HOME\}"):
        qat.load_trained(folder / "finished")


@pytest.mark.parametrize("has_new_key", [False, True])
def test_a_sweep_knows_its_finished_jobs(folder, tmp_path, has_new_key, monkeypatch, capsys):
    """Hashes are over first names, and over no key that came later and is at its default."""
    for job in (folder / "sweep").iterdir():
        config = yaml.safe_load((job / ".hydra" / "config.yaml").read_text())
        name = "float" if "quant_float" in job.name else "bcgd_w1a4"
        now = composed(conf_folder(), [*SMALL, f"quant={name}", "seed=1"]).config
        if has_new_key:
            monkeypatch.setitem(numbers._FOREIGN_ADDED, "trainer.new_key", 0)
            numbers._added.cache_clear()
            now["trainer"]["new_key"] = 0
        assert config_hash(config) == config_hash(now) == job.name.split("-")[1]
        now["trainer"]["new_key"] = 1
        assert config_hash(now) != config_hash(config)
    monkeypatch.undo()
    numbers._added.cache_clear()
    command = [*SMALL, "quant=float,bcgd_w1a4", "seed=1", f"hydra.sweep.dir={folder / 'sweep'}"]
    out = train("-m", *command, "sweep.list=true", "sweep.any_code=true", cwd=tmp_path)
    assert "2 finished" in out or out.count("finished") >= 2, out
