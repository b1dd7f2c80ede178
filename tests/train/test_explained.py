"""Failures of memory and of loader processes, told in one line with the setting that helps."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from qat.errors import LostProcessError, QatError
from qat.train.explained import explained


def spec(**changes):
    given = {"batch_size": 64, "workers": 2, "precision": "32-true", "saved": "floats"} | changes
    return SimpleNamespace(
        runtime=SimpleNamespace(saved=given["saved"]),
        data=SimpleNamespace(batch_size=given["batch_size"], workers=given["workers"]),
        trainer={"precision": given["precision"]},
    )


class Failing(Dataset):
    """Whose worker hangs, or is killed as the machine kills what takes its memory."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.kind == "hangs":
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)


def failure(make):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever torch raises)
        make()
    return caught.value


def test_memory_of_a_cpu():
    error = failure(lambda: torch.empty(10**15))
    found = str(explained(error, spec()))
    assert "data.batch_size=32 with trainer.accumulate_grad_batches=2" in found
    assert "runtime.saved=codes" in found
    assert "trainer.precision=bf16-mixed" in found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_of_others(error):
    found = explained(error, spec(saved="codes", precision="bf16-mixed", batch_size=1, workers=0))
    assert type(found) is QatError
    assert "smaller network" in str(found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        pytest.param("hangs", ["data.timeout", "data.workers=0"], marks=pytest.mark.slow),
        ("is killed", ["loader process", "data.workers (now 2)"]),
    ],
)
def test_a_loader_process_that(kind, words):
    loader = DataLoader(Failing(kind), batch_size=1, num_workers=1, timeout=2)
    found = explained(failure(lambda: next(iter(loader))), spec())
    assert type(found) is LostProcessError  # the run is interrupted, and may go on
    assert all(word in str(found) for word in [*words, "resume goes on"])


def test_other_failures_stay_what_they_are():
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), spec()) is None
