"""Several processes of one run: started by the command, torchrun or srun, killed, gone on with."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from qat.storage.checkpoint import checkpoints_by_step
from support import ROOT
from support.real_run import differences, ranks_of

RUN = (
    "model=lenet5", "trainer.max_epochs=5", "warm_start.epochs=1", "training.threads=1",
    "training.checkpoint_every=4", "data.batch_size=100", "trainer.accelerator=cpu",
)  # fmt: skip
TWO = (*RUN, "trainer.devices=2")
TRAIN = (sys.executable, str(ROOT / "train.py"))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder, *command, **environment):
    log = (folder.parent / "log.txt").open("a")
    return subprocess.Popen(
        command, cwd=folder.parent, stdout=log, stderr=log, env={**ENVIRONMENT, **environment}
    )


def train(folder, *arguments, code=0, command=TRAIN):
    """Run it to its end; what it said."""
    log = folder.parent / "log.txt"
    before = len(log.read_text()) if log.exists() else 0
    assert start(folder, *command, *arguments).wait(timeout=300) == code, log.read_text()[before:]
    return log.read_text()[before:]


def wait_for(step, folder, process):
    """Until a checkpoint of `step` or a later one is there."""
    deadline = time.monotonic() + 200
    while not any(saved >= step for saved in checkpoints_by_step(folder / "checkpoints" / "last")):
        assert time.monotonic() < deadline
        assert process.poll() is None, (folder.parent / "log.txt").read_text()
        time.sleep(0.02)


def stop_after(step, folder, *arguments):
    """Begin or go on, and let a signal end it once a checkpoint of `step` is there."""
    process = start(folder, *TRAIN, *arguments)
    wait_for(step, folder, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def state(folder):
    return json.loads((folder / "status.json").read_text())["state"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    said = train(folder, *TWO, f"hydra.run.dir={folder}")
    assert "resume" not in said
    assert said.count("epoch 5/5") == 1  # one process speaks
    return folder


def check_equal(folder, whole):
    assert differences(folder, whole) == []
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert state(folder) == "finished"
    one, other = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    assert one["selected"] == other["selected"]
    assert one["processes"] == other["processes"] == 2


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(tmp_path, whole):
    folder = tmp_path / "run"
    stop_after(16, folder, *TWO, f"hydra.run.dir={folder}")
    assert state(folder) == "interrupted"
    assert "resume: " in train(folder, f"resume={folder}")
    check_equal(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on_bit_for_bit(tmp_path, whole, victim):
    folder = tmp_path / "run"
    process = start(folder, *TRAIN, *TWO, f"hydra.run.dir={folder}")
    wait_for(16, folder, process)
    members = ranks_of(process.pid)
    assert len(members) == 2
    os.kill(members[victim], signal.SIGKILL)
    begun = time.monotonic()
    assert process.wait(timeout=60) == 1
    assert time.monotonic() - begun < 30
    assert not any(os.path.exists(f"/proc/{pid}") for pid in members)
    assert "was killed by SIGKILL; resume=" in (tmp_path / "log.txt").read_text()
    assert state(folder) == "interrupted"
    train(folder, f"resume={folder}")
    check_equal(folder, whole)


@pytest.mark.slow
def test_ranks_leave_when_what_started_them_is_killed(tmp_path, whole):
    folder = tmp_path / "run"
    process = start(folder, *TRAIN, *TWO, f"hydra.run.dir={folder}")
    wait_for(16, folder, process)
    members = ranks_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in members):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    train(folder, f"resume={folder}")
    check_equal(folder, whole)


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed(tmp_path, whole):
    folder = tmp_path / "run"
    command = (*TORCHRUN, "--max-restarts=2", TRAIN[1], *RUN)
    process = start(folder, *command, f"hydra.run.dir={folder}")
    wait_for(16, folder, process)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()
    check_equal(folder, whole)


SRUN = """#!{python}
import os, subprocess, sys
command = [a for a in sys.argv[1:] if not a.startswith("--")]
assert command[0] == "python"
processes = [
    subprocess.Popen(
        [sys.executable, *command[1:]],
        env=os.environ | {{
            "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank),
        }},
    )
    for rank in range(2)
]
sys.exit(max(process.wait() for process in processes))
"""


@pytest.mark.slow
def test_the_script_for_slurm_by_a_stub_of_srun(tmp_path, whole):
    """One machine as two: what SLURM says of processes is said by a stub of its command."""
    folder, srun = tmp_path / "run", tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    (tmp_path / "train.py").symlink_to(TRAIN[1])
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    script = ("bash", str(ROOT / "scripts" / "train.sbatch"), *RUN, "data.workers=0")
    process = start(folder, *script, f"hydra.run.dir={folder}", **slurm)
    assert process.wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()
    check_equal(folder, whole)


@pytest.mark.slow
def test_torchrun_on_two_machines_that_are_one(tmp_path, whole):
    folder = tmp_path / "run"
    command = (
        *TORCHRUN[:3], "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}", TRAIN[1], *RUN, f"hydra.run.dir={folder}",
    )  # fmt: skip
    machines = [start(folder, *command) for _ in range(2)]
    log = tmp_path / "log.txt"
    assert [machine.wait(timeout=200) for machine in machines] == [0, 0], log.read_text()
    check_equal(folder, whole)
    assert "num_nodes: 2" in (folder / ".hydra" / "config.yaml").read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path, whole):
    folder = tmp_path / "run"
    stop_after(16, folder, *RUN, f"hydra.run.dir={folder}")
    stop_after(32, folder, f"resume={folder}", "trainer.devices=2")
    said = train(folder, f"resume={folder}", "trainer.devices=1")
    assert "resume: " in said
    rows = [(f / "metrics.csv").read_text().splitlines() for f in (folder, whole)]
    # the same steps, epochs and validations, of the same batches
    assert [r.split(",")[:2] for r in rows[0]] == [r.split(",")[:2] for r in rows[1]]
    assert state(folder) == "finished"


@pytest.mark.slow
def test_a_job_of_a_sweep_has_processes_of_its_own(tmp_path, whole):
    folder = tmp_path / "run"
    said = train(folder, "-m", *TWO, "quant=bcgd_w1a4", "seed=1,2", "sweep.name=two")
    assert said.count("finished    seed=") == 2
    jobs = sorted((tmp_path / "sweeps" / "two").glob("seed*"))
    assert [json.loads((job / "summary.json").read_text())["processes"] for job in jobs] == [2, 2]
    assert differences(jobs[0], whole) == []


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_told_once(tmp_path):
    folder = tmp_path / "run"
    said = train(folder, *TWO, "data.batch_size=3", f"hydra.run.dir={folder}", code=1)
    assert said.count("error: ") == 1
    assert "data.batch_size=3 is of all 2 processes together" in said


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path):
    folder = tmp_path / "run"
    said = train(folder, *TWO, "optimizer.lr=1e6", f"hydra.run.dir={folder}", code=1)
    assert said.count("error: ") == 1
    assert "the update was not made" in said
    newest = max((folder / "checkpoints").rglob("*.ckpt"), default=None)
    if newest is not None:
        content = torch.load(newest, weights_only=True)["state_dict"]
        assert all(bool(w.isfinite().all()) for w in content.values())


SPOILED = """
import lightning as L

from qat.errors import DataError
from qat.ranks import group as ranks


class Spoiled(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 6 and ranks.rank() == 1:
            raise DataError("image x.png is damaged")
"""


@pytest.mark.slow
def test_what_fails_in_another_process_is_what_the_run_records(tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "spoiling.py").write_text(SPOILED)
    own = ("+callbacks.x={_target_: spoiling.Spoiled}", "allow_targets=[spoiling.]")
    arguments = (*TRAIN, *TWO, *own, f"hydra.run.dir={folder}")
    process = start(folder, *arguments, PYTHONPATH=f"{ROOT}:{tmp_path}")
    log = tmp_path / "log.txt"
    assert process.wait(timeout=200) == 1, log.read_text()
    assert log.read_text().count("error: process 1: image x.png is damaged") == 1
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"].startswith("process 1: image x.png is damaged; then resume=")


@pytest.mark.slow
def test_a_share_of_the_validation_is_that_of_one_process(tmp_path):
    """Of 359 images in batches of 179, of which the last holds one: not a batch for each."""
    share = ("trainer.limit_val_batches=0.7", "data.batch_size=179", "trainer.max_epochs=2")
    seen = []
    for name, devices in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        train(folder, *RUN, *share, f"trainer.devices={devices}", f"hydra.run.dir={folder}")
        seen.append(json.loads((folder / "summary.json").read_text())["warm_start"]["val_acc"])
    # one float epoch apart, both are shares of the same 358 images
    assert all(abs(score * 358 - round(score * 358)) < 1e-3 for score in seen)


@pytest.mark.slow
def test_a_job_of_a_launcher_has_processes_of_its_own(tmp_path, whole):
    pytest.importorskip("submitit")
    folder = tmp_path / "run"
    own = ("hydra/launcher=submitit_local", "seed=1", "sweep.name=sent", "sweep.threads=1")
    said = train(folder, "-m", *[o for o in TWO if "threads" not in o], *own)
    (job,) = (tmp_path / "sweeps" / "sent").glob("*-*-*")
    assert json.loads((job / "summary.json").read_text())["processes"] == 2, said
    assert differences(job, whole) == []
