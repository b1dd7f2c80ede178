"""kill -9 at random moments, over methods, of one process and two: every end has the same bits.

QAT_KILL_SEED=N draws other moments.
"""

import os
import random
import signal
import time

import pytest

from qat.storage.checkpoint import checkpoints_by_step, last_good
from support.real_run import PLAIN, differences, ranks_of, start, train

RUN = (
    "model=lenet5", "trainer.max_epochs=10", "warm_start.epochs=2", "training.threads=1",
    "data.batch_size=100", "training.checkpoint_every=4",
)  # fmt: skip
# whatever a resume could lose: the rule's state, learned steps and clips, schedules in the graph,
# a teacher and a learned adapter, averages, the place of loader processes, images mixed in
METHODS = {
    "binary_connect": ("quant=binary_connect_w1a4",),
    "binary_relax": ("quant=binary_relax_w1a4",),
    "bcgd": ("quant=bcgd_w1a4",),
    "bcgd_sign": ("quant=bcgd_w1a1",),
    "lsq": ("quant=lsq_w2a4",),
    "dorefa": ("quant=dorefa_w1a4",),
    "pact": ("quant=pact_w4a4",),
    "biper": ("quant=biper_w1a32",),
    "reste": ("quant=reste_w1a1",),
    "label_free": ("distill=faqd_label_free", "distill.features.adapter=conv_relu"),
    "ema": ("ema.decay=0.99", "optimizer=adamw"),
    "workers": ("quant=binary_relax_w1a4", "data.workers=1"),
    "mixed": ("data.mixup=0.4", "data.cutmix=1", "data.erase=0.25", "data.workers=1"),
}
ONE = ("before", "any", "save", "any", "save")
TWO = ("any", "save", "any", "any")
assert len(METHODS) * (len(ONE) + len(TWO)) >= 100
GONE = 30.0  # seconds in which all of a run's processes end once one of them was killed


def wait_for(moment, folder, process):
    """Until a run has begun, is in a save, or has saved; seconds within which to kill it."""
    checkpoints = folder / "checkpoints"
    saved, deadline = set(checkpoints.rglob("*.ckpt")), time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < deadline, process.communicate()
        if moment == "before" and (folder / ".hydra" / "overrides.yaml").exists():
            return 0.5
        if moment == "save" and next(checkpoints.rglob(".*.part"), None):
            return 0.002
        if moment == "any" and set(checkpoints.rglob("*.ckpt")) - saved:
            return 0.2
        time.sleep(0.001)
    return 0.0


def kill(process, victim):
    """Kill the command (None) or one of the processes that it started; all others end, too."""
    members = ranks_of(process.pid)
    pid = process.pid if victim is None else members[victim]
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    process.communicate(timeout=GONE)
    while any(os.path.exists(f"/proc/{member}") for member in members):
        assert time.monotonic() - begun < GONE, "a process of the run is left"
        time.sleep(0.02)


def survive(tmp_path, words, moments, victims):
    """Kill a run at each of the moments, go on each time, and compare its end."""
    rng = random.Random(f"{os.environ.get('QAT_KILL_SEED', '0')} {words}")
    whole, folder = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for each in (whole, folder):
        each.parent.mkdir()
    command, last = (*words, f"hydra.run.dir={folder}"), folder / "checkpoints" / "last"
    for moment, victim in zip(moments, victims, strict=True):
        process = start(*command, cwd=folder.parent)
        time.sleep(rng.uniform(0, wait_for(moment, folder, process)))
        assert process.poll() is None, f"it ended before it was killed: {process.communicate()}"
        kill(process, victim)
        print(f"killed {moment} {victim}: checkpoints of steps {list(checkpoints_by_step(last))}")
        command = (f"resume={folder}",)
    newest = last_good(last)
    assert newest is not None
    assert f"resume: {newest}" in train(*command, cwd=folder.parent)
    train(*words, f"hydra.run.dir={whole}", cwd=whole.parent)
    assert differences(folder, whole) == []
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_one_process(method, tmp_path):
    survive(tmp_path, (*RUN, *METHODS[method]), ONE, [None] * len(ONE))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes(method, tmp_path):
    words = (*RUN, *PLAIN, *METHODS[method], "trainer.devices=2", "trainer.accelerator=cpu")
    survive(tmp_path, words, TWO, [0, 1, None, 1])
