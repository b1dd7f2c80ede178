"""Memory stays where it is after a warm-up: over fifty jobs of one process, and over a long run.

QAT_SOAK_SECONDS=3600 makes the long run an hour; here it takes two minutes.
"""

import json
import os
import signal
import statistics
import time

import pytest

from qat.spec.lightning import CALLBACKS
from support.real_run import start

JOBS, WARM = 50, 10
GROWTH = 0.05
MANY = """
import contextlib
import gc
import json
import os
import sys
from pathlib import Path

from qat.commands.train import main

jobs, *words = sys.argv[1:]
sizes = []
for job in range(int(jobs)):
    sys.argv[1:] = [*words, f"seed={job + 1}", f"hydra.run.dir=job{job}"]
    with contextlib.suppress(SystemExit):
        main()
    assert json.loads(Path(f"job{job}/status.json").read_text())["state"] == "finished"
    gc.collect()
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
Path("sizes.json").write_text(json.dumps(sizes))
"""
ARGUMENTS = {
    "EarlyStopping": ", monitor: val/acc, mode: max, patience: 1000000",
    "BasePredictionWriter": ", write_interval: epoch",
    "SpikeDetection": ", rtol: 1000000",  # or it ends the run at a loss twice the last ones
}
NOT_HERE = {"DeviceStatsMonitor", "RichModelSummary", "RichProgressBar"}  # other packages
SOAK = float(os.environ.get("QAT_SOAK_SECONDS", "120"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_jobs_in_one_process(tmp_path):
    script = tmp_path / "many.py"
    script.write_text(MANY)
    words = ("model=lenet5", "trainer.max_epochs=2", "warm_start.epochs=1", "training.threads=1")
    process = start(str(JOBS), *words, cwd=tmp_path, script=script, cold=True)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, out + err
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    print("MB after each job:", [round(size / 1e6) for size in sizes])
    assert len(sizes) == JOBS
    assert sizes[-1] < (1 + GROWTH) * sizes[WARM - 1]


@pytest.mark.slow
@pytest.mark.timeout(SOAK + 300)
def test_a_long_run_with_all_callbacks(tmp_path):
    """Every callback of Lightning that a run takes, beside its own, and Weights & Biases."""
    names = [n for n, (reason, _) in CALLBACKS.items() if not reason and n not in NOT_HERE]
    words = [
        f"+callbacks.{name.lower()}={{_target_: lightning.pytorch.callbacks.{name}"
        f"{ARGUMENTS.get(name, '')}}}"
        for name in names
    ]
    folder = tmp_path / "run"
    run = (
        "model=lenet5", "warm_start.epochs=0", "trainer.max_epochs=1000000", "training.threads=1",
        "logger=wandb", "data.workers=1", "ema.decay=0.999", f"hydra.run.dir={folder}",
    )  # fmt: skip
    process = start(*run, *words, cwd=tmp_path, cold=True)
    sizes, begun = [], None
    while begun is None or time.monotonic() - begun < SOAK:
        assert process.poll() is None, process.communicate()
        if begun is None and list(folder.glob("checkpoints/last/*.ckpt")):
            begun = time.monotonic()
        if begun is not None:
            sizes.append(_resident(process.pid))
        time.sleep(SOAK / 400)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    quarter = len(sizes) // 4
    middle, end = (
        statistics.median(part) for part in (sizes[quarter : 2 * quarter], sizes[-quarter:])
    )
    rows = sum(1 for _ in (folder / "metrics.csv").open())
    print(f"{len(names)} callbacks, {rows} rows of metrics.csv;", "MB of each quarter:", [
        round(statistics.median(sizes[k * quarter : (k + 1) * quarter]) / 1e6, 1) for k in range(4)
    ])  # fmt: skip
    assert end < (1 + GROWTH) * middle


def _resident(pid):
    """Bytes in memory of a process and of all that it started."""
    children = (p for p in os.listdir("/proc") if p.isdigit() and _parent(p) == pid)
    return _size(pid) + sum(_resident(int(child)) for child in children)


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _size(pid):
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
