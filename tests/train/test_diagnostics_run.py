"""The diagnostics in real runs: what they write, that they change nothing, that they resume."""

import csv

import pytest

from support.real_run import SAVING, SMALL, differences, kill_after, train

WINDOW = ("quant/oscillation", "quant/occupancy", "quant/settled")
PROBE = ("quant/dead_gradients", "quant/gradient_cosine")


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def steps(folder, name):
    return [int(row["step"]) for row in rows_of(folder) if row.get(name)]


def test_what_is_written(trained):
    # the quantized phase is steps 18 to 68; the window of step 24 is the ten steps from 15 on
    for name in WINDOW:
        assert steps(trained, name) == [36, 48, 60]
    for name in PROBE:
        assert steps(trained, name) == [24, 36, 48, 60]
    for row in rows_of(trained):
        for name in (*WINDOW, *PROBE):
            if row.get(name):
                assert (-1 if "cosine" in name else 0) <= float(row[name]) <= 1
        if row.get("quant/settled"):
            assert float(row["quant/settled"]) <= float(row["quant/occupancy"])
    assert (trained / "figures" / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (trained / "figures" / "diagnostics.svg").read_text()


@pytest.mark.parametrize(
    "off",
    [
        ("diagnostics", "records"),
        pytest.param(("diagnostics",), marks=pytest.mark.slow),
        pytest.param(("records",), marks=pytest.mark.slow),
    ],
)
def test_training_is_the_same_without_it_and_without_the_records(trained, tmp_path, off):
    folder = tmp_path / "plain"
    own = [option for option in SMALL if "diagnostics" not in option or "diagnostics" not in off]
    null = [f"callbacks.{name}=null" for name in off]
    train(*own, *null, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert differences(trained, folder) == []
    assert (folder / "figures").exists() == ("diagnostics" not in off)
    metrics = [(run / "metrics.csv").read_bytes() for run in (folder, trained)]
    assert (metrics[0] == metrics[1]) == ("diagnostics" not in off)
    files = ("layers.csv", "histograms.csv")
    assert [(folder / name).exists() for name in files] == ["records" not in off] * 2


@pytest.mark.slow  # by day test_records_run.py looks at the same bytes of a run killed twice
def test_a_killed_run_writes_the_same_numbers(trained, tmp_path):
    folder = tmp_path / "killed"
    # inside the window of step 36: its first half is in the checkpoint alone
    kill_after(30, folder, *SMALL, SAVING, cwd=tmp_path)
    train(f"resume={folder}", cwd=tmp_path)
    assert (folder / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "quant", ["float", "lsq_w4a4", pytest.param("bcgd_w1a1", marks=pytest.mark.slow)]
)
def test_other_networks(quant, tmp_path):
    folder = tmp_path / "run"
    own = ["trainer.max_epochs=2", "warm_start.epochs=0", f"quant={quant}"]
    train(*SMALL, *own, f"hydra.run.dir={folder}", cwd=tmp_path)
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert ("quant/gradient_cosine" in header) == (quant != "float")
    assert ("quant/occupancy" in header) == (quant != "float")
    assert (folder / "figures").exists() == (quant != "float")
