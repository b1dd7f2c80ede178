"""The real command as a process, and what it leaves."""

import os
import signal
import subprocess
import sys
import time

import torch

from support import ROOT


def start(*arguments, cwd, script=None):
    """Start `python train.py ARGUMENTS`, or another script in its place."""
    return subprocess.Popen(
        [sys.executable, str(script or ROOT / "train.py"), *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def train(*arguments, cwd, code=0, script=None):
    """Run it to its end; returns what it printed."""
    process = start(*arguments, cwd=cwd, script=script)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out + err


def kill_after(step, folder, *arguments, cwd):
    """Start a run in `folder` and kill it once a checkpoint of `step` or later is there."""
    process = start(*arguments, f"hydra.run.dir={folder}", cwd=cwd)
    last, deadline = folder / "checkpoints" / "last", time.monotonic() + 120
    while not any(int(path.stem.partition("=")[2]) >= step for path in last.glob("*.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def tensors(folder, part="last"):
    """Every tensor of the newest checkpoint, latent weights under names of their own."""
    newest = max((folder / "checkpoints" / part).glob("*.ckpt"))
    content = torch.load(newest, weights_only=True)
    latent = content["optimizer_states"][0]["qat"]["latent"]
    found = {**content["state_dict"], **{f"latent {key}": value for key, value in latent.items()}}
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def differences(one, other, part="last"):
    """Names of the tensors of two runs that are not equal bit for bit."""
    before, after = tensors(one, part), tensors(other, part)
    assert before.keys() == after.keys()
    return [key for key in before if not torch.equal(before[key], after[key])]
