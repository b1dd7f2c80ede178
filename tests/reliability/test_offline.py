"""A run speaks to no other machine, Weights & Biases' own process included."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from support import ROOT
from support.real_run import PLAIN, SMALL

RUN = (sys.executable, str(ROOT / "train.py"), *SMALL, *PLAIN, "logger=wandb")
ADDRESS = re.compile(r'inet_addr\("([\d.]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


def finished(folder, *prefix):
    """Train under another command."""
    run = subprocess.run(
        [*prefix, *RUN, f"hydra.run.dir={folder}"], cwd=folder.parent, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert list(folder.rglob("*.wandb"))


def works(*command):
    return shutil.which(command[0]) and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not works("strace", "-o/dev/null", "true"), reason="needs strace")
def test_it_connects_to_no_other_machine(tmp_path):
    calls = tmp_path / "calls"
    finished(tmp_path / "run", "strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", calls)
    text = calls.read_text()
    assert "connect(" in text  # to a socket of this machine: calls were seen
    addresses = {a or b for a, b in ADDRESS.findall(text)}
    assert {a for a in addresses if not a.startswith("127.") and a not in ("::1", "::")} == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not works("unshare", "-rn", "true"), reason="may make no network of its own")
def test_it_runs_without_a_network(tmp_path):
    finished(tmp_path / "run", "unshare", "-rn")
