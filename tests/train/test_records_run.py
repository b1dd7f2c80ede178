"""The records in real runs: what they hold, that they change nothing, that they resume."""

import csv
import json

import pytest
import torch

from support.real_run import SAVING, SMALL, kill_after, tensors, train

FILES = ("layers.csv", "histograms.csv")
STEPS = ["17", "34", "51", "68"]  # the start of the quantized phase, and the ends of its epochs


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_layers(trained):
    rows = rows_of(trained / "layers.csv")
    assert list(rows[0]) == ["step", "epoch", "layer", "quantity", "value"]
    audited = [row["name"] for row in json.loads((trained / "summary.json").read_text())["audit"]]
    for quantity in ("scale", "distance", "flip_rate", "alpha"):
        found = [row for row in rows if row["quantity"] == quantity]
        steps = STEPS[quantity == "flip_rate" :]
        layers = list(dict.fromkeys(row["layer"] for row in found))
        assert [(r["step"], r["layer"]) for r in found] == [(s, n) for s in steps for n in layers]
        if quantity == "alpha":
            assert layers == ["relu1", "relu2", "relu3", "relu4"]
        else:
            assert layers == audited
        for row in found:
            assert 0 <= float(row["value"]) <= (1 if "i" in quantity else 5)
    epochs = dict(zip(STEPS, ["1", "1", "2", "3"], strict=True))
    assert all(row["epoch"] == epochs[row["step"]] for row in rows)


def test_the_last_record_is_the_last_checkpoint(trained):
    rows = [row for row in rows_of(trained / "layers.csv") if row["step"] == "68"]
    found = {(row["layer"], row["quantity"]): float(row["value"]) for row in rows}
    saved = tensors(trained)
    for layer in {name for name, quantity in found if quantity == "scale"}:
        (latent,) = (v for k, v in saved.items() if k.startswith("latent") and f"{layer}." in k)
        scale = latent.abs().mean()
        gap = (latent - scale * torch.where(latent >= 0, 1.0, -1.0)).norm() / latent.norm()
        assert found[layer, "scale"] == pytest.approx(float(scale), rel=1e-5)
        assert found[layer, "distance"] == pytest.approx(float(gap), rel=1e-5)
    for name in ("relu1", "relu2", "relu3", "relu4"):
        assert found[name, "alpha"] == pytest.approx(float(saved[f"net.{name}.step"]))


def test_histograms(trained):
    rows = rows_of(trained / "histograms.csv")
    assert list(rows[0]) == ["step", "epoch", "layer", "low", "high", "levels", "counts"]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    assert [(r["step"], r["layer"]) for r in rows] == [(s, n) for s in STEPS for n in layers]
    saved = tensors(trained)
    for row in rows:
        counts, reach = [int(n) for n in row["counts"].split()], float(row["high"])
        assert len(counts) == 41
        assert row["levels"] == "-1.0 1.0"
        assert float(row["low"]) == -reach
        (latent,) = (
            v for k, v in saved.items() if k.startswith("latent") and f"{row['layer']}." in k
        )
        assert sum(counts) == latent.numel()
        if row["step"] == "68":
            inside = latent.flatten() / latent.abs().mean()
            expected = torch.histc(inside.clamp(-reach, reach), 41, -reach, reach)
            wrong = (expected - torch.tensor(counts)).abs().sum()
            assert float(wrong) <= 0.002 * latent.numel()  # rounding at the edges


@pytest.mark.parametrize("state", ["last", "selected"])
def test_confusion(trained, state):
    summary = json.loads((trained / "summary.json").read_text())
    matrix = torch.tensor(summary[state]["confusion"])
    assert matrix.shape == (10, 10)
    # the digits' own counts, in the test part that is held out
    assert int(matrix.sum()) > 300
    assert (matrix.sum(dim=1) > 20).all()
    accuracy = float(matrix.diag().sum() / matrix.sum())
    assert accuracy == pytest.approx(summary[state]["test_acc"], abs=1e-6)
    assert "confusion" not in summary["warm_start"]


@pytest.mark.slow
def test_a_run_killed_twice_leaves_the_same_bytes(trained, tmp_path):
    folder = tmp_path / "killed"
    # soon after the phase's start; in the midst of a later epoch, and of the diagnostics' window of
    # steps 39 to 48, the first steps of which are in the checkpoint alone
    kill_after(20, folder, *SMALL, SAVING, cwd=tmp_path)
    kill_after(40, folder, f"resume={folder}", cwd=tmp_path)
    for name in FILES:  # what a kill in the midst of writing leaves
        with (folder / name).open("a") as file:
            file.write("99,9,conv1,half a li")
    train(f"resume={folder}", cwd=tmp_path)
    for name in (*FILES, "metrics.csv"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_a_quick_float_run_leaves_none(tmp_path):
    folder = tmp_path / "run"
    quick = ["model=lenet5", "debug=quick", "quant=float", "training.threads=1"]
    train(*quick, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert not any((folder / name).exists() for name in FILES)
    assert "confusion" in json.loads((folder / "summary.json").read_text())["last"]


@pytest.mark.slow
def test_a_student_without_labels_has_a_confusion_matrix(tmp_path):
    folder = tmp_path / "run"
    quick = ["model=lenet5", "debug=quick", "training.threads=1", "distill=faqd_label_free"]
    train(*quick, f"hydra.run.dir={folder}", cwd=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    matrix = torch.tensor(summary["selected"]["confusion"])
    accuracy = float(matrix.diag().sum() / matrix.sum())
    assert accuracy == pytest.approx(summary["selected"]["test_acc"], abs=1e-6)
