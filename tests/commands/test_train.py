"""The real command on the real digits: what a run leaves, and how it is continued."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from support import ROOT
from support.real_run import SMALL, start, train


def digest(folder):
    """Latent weights, steps, statistics and metrics at the end of a run."""
    newest = max((folder / "checkpoints" / "last").glob("*.ckpt"))
    state = torch.load(newest, weights_only=True)
    tensors = {**state["state_dict"], **state["optimizer_states"][0]["qat"]["latent"]}
    found = {k: v.numpy().tobytes() for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    return found | {"metrics.csv": (folder / "metrics.csv").read_bytes()}


def test_a_run_leaves_its_folder(trained):
    summary = json.loads((trained / "summary.json").read_text())
    for name in ("warm_start", "last", "selected"):
        assert 0 <= summary[name]["test_acc"] <= 1
        assert 0 <= summary[name]["val_acc"] <= 1
    assert summary["bits"] == 1
    assert summary["quantized_share"] == 1
    assert summary["seed"] == 1
    assert summary["threads"] == 1
    assert summary["export"] == "packed, onnx, qonnx yes"
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {row["levels"] for row in summary["audit"]} == {2}
    assert summary["rule"]["quantized_steps"] == 3 * 17
    status = json.loads((trained / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["error"] is None
    assert status["config_hash"] == summary["config_hash"]
    assert (trained / ".hydra" / "config.yaml").is_file()
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [float(r["quant/theta"]) for r in rows if r["quant/theta"]] == [0.0, 1.0, 1.0, 1.0]
    flips = [float(r["quant/flip_rate"]) for r in rows if r["quant/flip_rate"]]
    assert len(flips) == 1  # of step 50 of 68
    assert 0 <= flips[0] < 1


def test_selection_is_the_best_validation_epoch_of_the_hard_phase(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    accuracies = [float(r["val/acc"]) for r in rows if r["val/acc"]]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["selected"]["val_acc"] == pytest.approx(max(accuracies[1:]), abs=1e-6)
    assert summary["last"]["val_acc"] == pytest.approx(accuracies[-1], abs=1e-6)
    assert summary["warm_start"]["val_acc"] == pytest.approx(accuracies[0], abs=1e-6)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_the_resumed_run_ends_on_the_same_bits(trained, tmp_path, signum, code):
    folder = tmp_path / "run"
    process = start(*SMALL, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for_rows(folder / "metrics.csv", 2)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    text = train(f"resume={folder}", cwd=tmp_path)
    assert "resume: " in text
    assert "step=" in text
    assert f"page: {folder / 'report.html'}\nnext: python scripts/export.py run={folder}" in text
    assert digest(folder) == digest(trained)


@pytest.mark.slow
def test_kill_9_before_the_first_checkpoint_says_so_and_ends_on_the_same_bits(trained, tmp_path):
    folder = tmp_path / "run"
    process = start(*SMALL, f"hydra.run.dir={folder}", cwd=tmp_path)
    wait_for_rows(folder / "metrics.csv", 1)
    process.kill()
    process.communicate()
    text = train(f"resume={folder}", cwd=tmp_path)
    assert "no checkpoint was saved; from step 0" in text
    assert digest(folder) == digest(trained)


def wait_for_rows(path, rows):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) > rows:
            return
        time.sleep(0.01)
    raise TimeoutError(path)


def test_resume_refuses_another_config_or_thread_count(trained, tmp_path):
    text = train(f"resume={trained}", "optimizer.lr=0.5", cwd=tmp_path, code=2)
    assert text.startswith("error: ")
    assert "optimizer.lr: 0.02 -> 0.5" in text
    assert "resume_allow=[optimizer.lr]" in text
    text = train(f"resume={trained}", "training.threads=2", cwd=tmp_path, code=2)
    assert "training.threads" in text


def test_a_finished_run_is_not_run_again(trained, tmp_path):
    before = (trained / "summary.json").stat().st_mtime_ns
    assert "finished" in train(f"resume={trained}", cwd=tmp_path)
    assert (trained / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_finished_run_trains_longer_when_allowed_by_name(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    train(
        f"resume={folder}",
        "trainer.max_epochs=5",
        "resume_allow=[trainer.max_epochs]",
        cwd=tmp_path,
    )
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 5


def test_audit_only_prints_the_table_and_trains_nothing(tmp_path):
    folder = tmp_path / "run"
    text = train(
        "audit_only=true", "quant.ends.last=float", f"hydra.run.dir={folder}", cwd=tmp_path
    )
    assert "ends.last=float" in text
    assert "average of quantized values" in text
    assert "times smaller" in text
    assert not (folder / "checkpoints").exists()
    assert not (folder / "summary.json").exists()


@pytest.mark.slow
def test_init_from_starts_from_a_run_and_multirun_runs_all(trained, tmp_path):
    text = train(
        "-m",
        *SMALL,
        "debug=quick",
        f"init_from={trained}",
        "quant=bcgd_w1a4,binary_relax_w2a4",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        cwd=tmp_path,
    )
    assert text.count("finished    quant=") == 2
    ends = sorted(tmp_path.glob("sweep/*/summary.json"))
    assert [json.loads(p.read_text())["rule"]["name"] for p in ends] == ["bcgd", "binary_relax"]


def test_a_loss_that_explodes_stops_in_one_line(tmp_path):
    folder = tmp_path / "run"
    text = train(
        *SMALL, "optimizer.lr=1e6", "optimizer.momentum=0.99", f"hydra.run.dir={folder}",
        cwd=tmp_path, code=1,
    )  # fmt: skip
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "step" in errors[0]
    assert "Traceback" not in text
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


def test_help_lists_groups_keys_and_completion(tmp_path):
    text = train("--help", cwd=tmp_path)
    for word in ("quant=RULE_wBITSaBITS", "resnet18", "pact", "resume=", "-sc install=bash", "rho"):
        assert word in text
    env = os.environ | {"COMP_LINE": "train.py quant=bcgd_w1a", "COMP_POINT": "23"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-sc", "query=bash"],
        env=env, capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "quant=bcgd_w1a4" in done.stdout


@pytest.mark.slow
def test_a_run_with_workers_ends_and_leaves_no_process(tmp_path):
    folder = tmp_path / "run"
    process = start(
        *SMALL, "debug=quick", "data.workers=2", f"hydra.run.dir={folder}", cwd=tmp_path
    )
    out, err = process.communicate(timeout=120)  # waits for every holder of the pipes
    assert process.returncode == 0, out + err
