"""Two processes train what one does, at the same global batch, up to the order of sums."""

import os
import subprocess
import sys

import pytest
import torch

from support import ROOT
from support.ranks_worker import FITS, fit

WORKER = ROOT / "tests" / "support" / "ranks_worker.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def together(folder, *names, size=2):
    """What each of several processes ended with, by name of the fit and rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(size), str(folder), *names],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(size)] for name in names
    }


def check(folder, *names, size=2):
    found = together(folder, *names, size=size)
    for name in names:
        alone, (first, *others) = fit(name), found[name]
        assert alone.keys() == first.keys()
        for key, value in alone.items():
            # no traffic keeps them equal: the same gradients and the same arithmetic do
            assert all(torch.equal(first[key], other[key]) for other in others), (name, key)
            bound = 1e-6 if key == "logged" else 1e-12
            torch.testing.assert_close(first[key], value, rtol=0, atol=bound, msg=f"{name} {key}")
        assert len(alone["losses"]) == 2 * 12


def test_two_processes_train_what_one_does(tmp_path):
    check(tmp_path, "bcgd_w1a4")


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_every_rule(tmp_path):
    check(tmp_path, *FITS)


@pytest.mark.slow
def test_a_plain_module_under_quantize(tmp_path):
    check(tmp_path, "callback")


@pytest.mark.slow
def test_three_processes_train_what_one_does(tmp_path):
    check(tmp_path, "bcgd_w1a4", "weighted", "mixed", size=3)
