"""How a run ends is what its folder says: deleted folders, signals at every stage."""

import json
import os
import shutil
import signal
import time

import pytest

from support.real_run import PLAIN, SMALL, start, train

LONG = [*SMALL, "trainer.max_epochs=300", *PLAIN]
OF_DEVICES = {1: (), 2: ("trainer.devices=2", "trainer.accelerator=cpu")}


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def running(tmp_path, *words, until="checkpoints/last/*.ckpt"):
    """A run that has saved its first checkpoint, or made another of its files."""
    folder = tmp_path / "run"
    process = start(*LONG, *words, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for(lambda: list(folder.glob(until)), process)
    return folder, process


@pytest.mark.slow
@pytest.mark.parametrize("devices", OF_DEVICES)
@pytest.mark.parametrize("part", [".", "checkpoints", "metrics.csv", ". at once"])
def test_what_is_deleted_under_a_run_ends_it(part, devices, tmp_path):
    words = OF_DEVICES[devices]
    if part == ". at once":  # before the first row of metrics.csv
        part, words = ".", ["training.checkpoint_every=100000", *words]
        folder, process = running(tmp_path, *words, until="checkpoints")
    else:
        folder, process = running(tmp_path, *words)
    if part == "metrics.csv":
        (folder / part).unlink()
    else:
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.rmtree(folder / part, ignore_errors=True)  # a file that came meanwhile
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No such file" in errors[0]
    assert "Traceback" not in err
    if part == ".":
        assert not (folder / "metrics.csv").exists(), "the folder was made anew"
    else:
        assert json.loads((folder / "status.json").read_text())["state"] == "failed"


STAGES = {
    "set-up": lambda folder: (folder / ".lock").exists(),
    "training": lambda folder: list(folder.glob("checkpoints/last/*.ckpt")),
    "report": lambda folder: (folder / "summary.json").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("devices", OF_DEVICES)
@pytest.mark.parametrize(
    ("stage", "times"),
    [("report", 2), ("training", 3), ("set-up", 1)],
)
def test_a_signal_at_any_stage_leaves_a_true_state(stage, times, devices, tmp_path):
    folder = tmp_path / "run"
    words = [*SMALL, "trainer.max_epochs=2", *OF_DEVICES[devices]]
    process = start(*words, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for(lambda: STAGES[stage](folder), process)
    for _ in range(times):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.03)
    out, err = process.communicate(timeout=120)
    status = folder / "status.json"
    state = json.loads(status.read_text())["state"] if status.exists() else None
    assert (process.returncode, state) in ((143, "interrupted"), (143, None)), out + err
    assert "Traceback" not in err
    train(f"resume={folder}", cwd=tmp_path)
    assert json.loads(status.read_text())["state"] == "finished"
