"""The real command as a process, and what it leaves."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import ROOT
from support.warm import WarmCommand, WarmServer

# a run of seconds; the one that all tests share is made by these
SMALL = (
    "model=lenet5", "trainer.max_epochs=4", "warm_start.epochs=1", "training.threads=1",
    "callbacks.diagnostics.every_n_steps=12",
)  # fmt: skip
# what a run measures of itself for its pictures takes as long as the rest of a run of seconds
PLAIN = ("callbacks.diagnostics=null", "callbacks.records=null")
SAVING = "training.checkpoint_every=5"


def start(*arguments, cwd, script=None, cold=False):
    """Start `python train.py ARGUMENTS`, or another script in its place; see `support.warm`."""
    script, env = script or ROOT / "train.py", os.environ | {"PYTHONPATH": str(ROOT)}
    if not cold and "QAT_TESTS_COLD" not in os.environ:
        return WarmCommand(warm_server(), script, arguments, cwd, env)
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip


@functools.cache
def warm_server():
    """The server of this run of pytest."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    home = Path(tempfile.gettempdir()) / f"qat-tests-{run}"
    return WarmServer(home, os.environ | {"PYTHONPATH": str(ROOT)})


def train(*arguments, cwd, code=0, script=None, cold=False):
    """Run it to its end; returns what it printed."""
    process = start(*arguments, cwd=cwd, script=script, cold=cold)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out + err


def kill_after(step, folder, *arguments, cwd, cold=False):
    """Start a run in `folder` and kill it once a checkpoint of `step` or later is there."""
    process = start(*arguments, f"hydra.run.dir={folder}", cwd=cwd, cold=cold)
    last, deadline = folder / "checkpoints" / "last", time.monotonic() + 120
    while not any(int(path.stem.partition("=")[2]) >= step for path in last.glob("*.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def ranks_of(pid):
    """The processes of a run that a command has started on several devices; none of one alone."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def tensors(folder, part="last"):
    """Every tensor of the newest checkpoint; an optimizer's latent weights by other names."""
    import torch

    newest = max((folder / "checkpoints" / part).glob("*.ckpt"))
    content = torch.load(newest, weights_only=True)
    found = dict(content["state_dict"])
    for optimizer in content.get("optimizer_states", ()):
        found |= {f"latent {key}": value for key, value in optimizer["qat"]["latent"].items()}
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def differences(one, other, part="last"):
    """Names of the tensors of two runs that are not equal bit for bit."""
    import torch

    before, after = tensors(one, part), tensors(other, part)
    assert before.keys() == after.keys()
    return [key for key in before if not torch.equal(before[key], after[key])]
