"""A run that meets no number goes back to its last checkpoint, at half the rate, so many times."""

import csv
import json
import os
import subprocess
import sys

import pytest

from support import ROOT
from support.real_run import PLAIN

RUN = (
    "model=lenet5", "trainer.max_epochs=4", "warm_start.epochs=1", "training.threads=1",
    "training.checkpoint_every=5", "data.batch_size=100", *PLAIN, "training.non_finite=roll_back",
    "allow_targets=[spoiling.]",
)  # fmt: skip
SPOILED = "+callbacks.spoiled={_target_: spoiling.Spoiled, above: %s, is_stopped: %s}"


# batches that are no numbers from step 17 on, as long as the learning rate is too high
SPOILING = """
import os
import signal

import lightning as L


class Spoiled(L.Callback):
    def __init__(self, above, is_stopped):
        self.above, self.is_stopped = above, is_stopped

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        rates = (group["initial_lr"] for group in trainer.optimizers[0].param_groups)
        rate = max(rates) * module.rate_factor
        if trainer.global_step >= 17 and rate > self.above:
            batch[0][:] = float("nan")
            if self.is_stopped:
                self.is_stopped = False
                os.kill(os.getpid(), signal.SIGTERM)
"""


def train(folder, *arguments, code=0):
    """Run the command with a callback of the user's own in reach; what it said."""
    (folder / "spoiling.py").write_text(SPOILING)
    found = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"}, text=True,
        capture_output=True, timeout=240,
    )  # fmt: skip
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.mark.slow
def test_a_run_goes_back_until_its_rate_is_low_enough(tmp_path):
    folder = tmp_path / "run"
    own = (*RUN, "optimizer.lr=0.08", f"hydra.run.dir={folder}")
    said = train(tmp_path, *own, SPOILED % (0.03, False))
    assert said.count("roll back ") == 2
    assert "roll back 2 of 3: step 18: the loss is nan" in said
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["roll_backs"]) == ("finished", 2)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows if row["val/acc"]] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_that_never_recovers_fails(tmp_path):
    folder = tmp_path / "run"
    own = (*RUN, "training.roll_backs=1", f"hydra.run.dir={folder}")
    said = train(tmp_path, *own, SPOILED % (0.0, False), code=1)
    assert said.count("roll back ") == 1
    assert "error: step 18: the loss is nan" in said
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_signal_meanwhile_leaves_a_run_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    own = (*RUN, "optimizer.lr=0.08", f"hydra.run.dir={folder}", SPOILED % (0.05, True))
    assert "Traceback" not in train(tmp_path, *own, code=143)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["roll_backs"]) == ("interrupted", 1)
    train(tmp_path, f"resume={folder}", "allow_targets=[spoiling.]")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["roll_backs"]) == ("finished", 1)
