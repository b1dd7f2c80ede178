"""kill -9 in the middle of a save: what has a checkpoint's name is whole."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from qat.storage.checkpoint import last_good, load
from support import ROOT

KILLS, NUMBERS = 20, 1 << 22  # 16 MB a file
SAVER = f"""
import sys, torch
from qat.storage.checkpoint import save
for step in range(10**6):
    x = torch.full(({NUMBERS},), float(step))
    save({{"step": step, "x": x}}, sys.argv[1] + "/step=00000001.ckpt")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_leave_no_torn_file(tmp_path):
    # a temporary folder on another file system, from which nothing can be moved at once
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": memory}
    path, in_save = tmp_path / "step=00000001.ckpt", 0
    for attempt in range(10 * KILLS):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], env=environment)
        size = NUMBERS * 4 * (attempt % KILLS) / KILLS  # of the part that is written by then
        old = set(tmp_path.glob(".*.part"))
        while not (path.exists() and any(_is_long(p, size) for p in _parts(tmp_path) - old)):
            assert process.poll() is None
            time.sleep(0.0002)
        process.kill()
        process.wait()
        in_save += bool(_parts(tmp_path) - old)  # it had no time to give the file its name
        found = load(path)
        assert torch.equal(found["x"], torch.full((NUMBERS,), float(found["step"])))
        assert last_good(tmp_path) == path
        if in_save == KILLS:
            return
    pytest.fail(f"only {in_save} of {10 * KILLS} kills were in a save")


def _parts(folder: Path) -> set[Path]:
    return set(folder.glob(".*.part"))


def _is_long(part: Path, size: float) -> bool:
    try:
        return part.stat().st_size > size
    except FileNotFoundError:  # it has its name
        return False
