"""kill -9 at random moments: every resume goes on from the newest checkpoint, bits are equal."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qat.storage.checkpoint import (
    checkpoints_by_step,
    last_good,
)
from support import ROOT

EVERY = 7  # optimizer steps between two checkpoints
RUN = [
    *("model=lenet5", "trainer.max_epochs=6", "warm_start.epochs=2", "training.threads=1"),
    *(f"training.checkpoint_every={EVERY}", "quant=binary_relax_w1a4"),
]


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    log = (folder.parent / "log.txt").open("ab")
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=folder.parent, stdout=log, stderr=log)


def weights(folder: Path) -> dict[str, bytes]:
    path = last_good(folder / "checkpoints" / "last")
    assert path is not None
    state = torch.load(path, weights_only=True)
    tensors = {**state["state_dict"], **state["optimizer_states"][0]["qat"]["latent"]}
    return {k: v.numpy().tobytes() for k, v in tensors.items() if isinstance(v, torch.Tensor)}


def kill(process: subprocess.Popen[bytes], folder: Path, moment: str, rng: random.Random) -> None:
    """Kill before the first checkpoint, in the middle of a save, or at some moment of training."""
    saved = set((folder / "checkpoints").rglob("*.ckpt"))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        files = set((folder / "checkpoints").rglob("*"))
        partial = [f for f in files if f.is_file() and f.suffix != ".ckpt"]
        fresh = {f for f in files - saved if f.suffix == ".ckpt"}
        if moment == "before" and (folder / ".hydra").exists():
            time.sleep(rng.uniform(0, 1))  # PyTorch is imported by now
            break
        if (moment == "save" and partial) or (moment == "any" and fresh):
            time.sleep(rng.uniform(0, 0.002 if moment == "save" else 0.5))
            break
    process.kill()
    process.wait()


def survive(tmp_path: Path, moments: list[str], seed: int, *options: str) -> None:
    rng = random.Random(seed)
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    assert start(whole, *RUN, *options, f"hydra.run.dir={whole}").wait() == 0
    folder = tmp_path / "killed" / "run"
    folder.parent.mkdir()
    command = [*RUN, *options, f"hydra.run.dir={folder}"]
    for moment in moments:
        kill(start(folder, *command), folder, moment, rng)
        if (folder / ".hydra" / "overrides.yaml").exists():
            command = [f"resume={folder}"]
        steps = list(checkpoints_by_step(folder / "checkpoints" / "last"))
        print(f"killed {moment}: checkpoints of steps {steps}")
    newest = last_good(folder / "checkpoints" / "last")
    log = folder.parent / "log.txt"
    offset = len(log.read_text())
    assert start(folder, *command).wait() == 0, log.read_text()[offset:]
    said = log.read_text()[offset:]
    # a run may have come to its end between two kills
    assert newest is None or f"resume: {newest}" in said or "is finished" in said
    assert re.search(r"no checkpoint was saved", said) or newest is not None
    assert weights(folder) == weights(whole)
    metrics = [(f / "metrics.csv").read_bytes() for f in (folder, whole)]
    assert metrics[0] == metrics[1]
    assert not [p for p in folder.rglob("*") if p.name.endswith((".part", ".tmp"))]


@pytest.mark.slow
def test_two_kills(tmp_path):
    survive(tmp_path, ["any", "save"], seed=int(os.environ.get("QAT_KILL_SEED", "0")))


@pytest.mark.slow
def test_a_kill_among_mixed_images(tmp_path):
    options = ("data.mixup=0.4", "data.cutmix=1", "data.erase=0.25", "data.workers=1")
    survive(tmp_path, ["any"], 0, *options)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills(tmp_path):
    moments = ["before", "before", "save", "any", "any", "save", "any", "save", "any", "any"]
    survive(tmp_path, moments, seed=int(os.environ.get("QAT_KILL_SEED", "0")))
