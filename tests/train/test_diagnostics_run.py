"""The diagnostics in real runs: what they write, that they change nothing, that they resume."""

import csv

import pytest

from support.real_run import differences, kill_after, train

SMALL = [
    "model=lenet5", "trainer.max_epochs=4", "warm_start.epochs=1", "training.threads=1",
    "callbacks.diagnostics.every_n_steps=12", "training.checkpoint_every=5",
]  # fmt: skip
WINDOW = ("quant/oscillation", "quant/occupancy", "quant/settled")
PROBE = ("quant/dead_gradients", "quant/gradient_cosine")


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def steps(folder, name):
    return [int(row["step"]) for row in rows_of(folder) if row.get(name)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnostics") / "run"
    train(*SMALL, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


def test_what_is_written(run):
    # the quantized phase is steps 18 to 68; the window of step 24 is the ten steps from 15 on
    for name in WINDOW:
        assert steps(run, name) == [36, 48, 60]
    for name in PROBE:
        assert steps(run, name) == [24, 36, 48, 60]
    for row in rows_of(run):
        for name in (*WINDOW, *PROBE):
            if row.get(name):
                assert (-1 if "cosine" in name else 0) <= float(row[name]) <= 1
        if row.get("quant/settled"):
            assert float(row["quant/settled"]) <= float(row["quant/occupancy"])
    assert (run / "figures" / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (run / "figures" / "diagnostics.svg").read_text()


def test_training_is_the_same_without_them(run, tmp_path):
    folder = tmp_path / "plain"
    command = [o for o in SMALL if "diagnostics" not in o]
    train(*command, "callbacks.diagnostics=null", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert differences(run, folder) == []
    assert not (folder / "figures").exists()


def test_a_killed_run_writes_the_same_numbers(run, tmp_path):
    folder = tmp_path / "killed"
    # inside the window of step 36: its first half is in the checkpoint alone
    kill_after(30, folder, *SMALL, cwd=tmp_path)
    train(f"resume={folder}", cwd=tmp_path)
    assert (folder / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.mark.parametrize("quant", ["float", "lsq_w4a4", "bcgd_w1a1"])
def test_other_networks(quant, tmp_path):
    folder = tmp_path / "run"
    train(*SMALL[:1], *SMALL[3:5], "trainer.max_epochs=2", "warm_start.epochs=0", f"quant={quant}",
          f"hydra.run.dir={folder}", cwd=tmp_path)  # fmt: skip
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert ("quant/gradient_cosine" in header) == (quant != "float")
    assert ("quant/occupancy" in header) == (quant != "float")
    assert (folder / "figures").exists() == (quant != "float")
