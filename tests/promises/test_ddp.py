"""Two gloo processes end with the same weights, and with those of one process."""

import os
import runpy
import subprocess
import sys

import pytest
import torch

from support import ROOT

WORKER = ROOT / "tests" / "support" / "ddp_worker.py"


@pytest.mark.slow
def test_two_ranks_equal_each_other_and_one_process(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    train = runpy.run_path(str(WORKER))["train"]
    alone = {rule: train(0, 1, rule) for rule in ("bcgd", "binary_relax")}
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys() == alone.keys()
    for rule, tensors in alone.items():
        assert len(first[rule]["0.weight"].unique()) == 2
        for key, value in tensors.items():
            assert torch.equal(first[rule][key], second[rule][key])
            torch.testing.assert_close(first[rule][key], value, rtol=1e-6, atol=1e-9)
