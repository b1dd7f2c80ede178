"""Two gloo processes end with the same weights, and with those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.parametrize("rule", ["bcgd", "binary_relax"])
def test_two_ranks_equal_each_other_and_one_process(tmp_path, rule):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(tmp_path), rule],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, world in ((0, 2), (1, 2), (0, 1))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second, alone = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("2_0", "2_1", "1_0")
    )
    assert first.keys() == second.keys() == alone.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key])
        torch.testing.assert_close(value, alone[key], rtol=1e-6, atol=1e-9)
    assert len(first["0.weight"].unique()) == 2
