"""kill -9 before chosen batches, around the ends of epochs: the end has the same bits."""

import signal

import pytest

from support.real_run import PLAIN, differences, start, train

EPOCH, EPOCHS = 4, 3  # optimizer steps
STEPS = (1, EPOCH - 1, EPOCH, EPOCH + 1, 2 * EPOCH, EPOCH * EPOCHS - 1)
RUN = (
    "model=lenet5", f"trainer.max_epochs={EPOCHS}", f"trainer.limit_train_batches={EPOCH}",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "warm_start.epochs=1",
    "training.threads=1", "training.checkpoint_every=1", *PLAIN,
)  # fmt: skip
METHODS = {
    "binary_connect": ("quant=binary_connect_w1a4",),
    "binary_relax": ("quant=binary_relax_w1a4",),
    "bcgd": ("quant=bcgd_w1a4",),
    "faqd": ("distill=faqd",),
}
KILLED = """
import os
import signal
import sys

from qat.lit.resume.guards import StatelessRandomness

step = int(sys.argv.pop(1))
begin = StatelessRandomness.on_train_batch_start

def killed(self, trainer, *others):
    if trainer.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self, trainer, *others)

StatelessRandomness.on_train_batch_start = killed
from qat.commands.train import main
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where a teacher is trained once."""
    return tmp_path_factory.mktemp("boundaries")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("decay", ["null", "0.9"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_killed_before_each_of_these_batches(method, workers, decay, home):
    words = (*RUN, *METHODS[method], f"data.workers={workers}", f"ema.decay={decay}")
    whole, folder = (home / f"{name}-{method}-{workers}-{decay}" for name in ("whole", "killed"))
    train(*words, f"hydra.run.dir={whole}", cwd=home)
    script = home / "killed.py"
    script.write_text(KILLED)
    command = (*words, f"hydra.run.dir={folder}")
    for step in STEPS:
        process = start(str(step), *command, cwd=home, script=script)
        assert process.communicate(timeout=120), step
        assert process.returncode == -signal.SIGKILL, step
        command = (f"resume={folder}",)
    train(*command, cwd=home)
    assert differences(folder, whole) == []
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
