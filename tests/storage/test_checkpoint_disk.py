"""Checkpoint files on a full disk, in a folder that cannot be written, and under kill -9."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qat.errors import CheckpointError
from qat.storage.checkpoint import (
    checkpoint_name,
    load,
    save,
)
from support import ROOT


def content(step=0):
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "state_dict": {"weight": torch.randn(64, 64, generator=generator)},
        "plain": {"list": [1, 2.5, "three", None, True]},
    }


@pytest.fixture
def three(tmp_path):
    for step in (10, 20, 100):
        save(content(step), tmp_path / checkpoint_name(step))
    return tmp_path


def same(left, right):
    weights = [each["state_dict"]["weight"] for each in (left, right)]
    return torch.equal(*weights) and left["plain"] == right["plain"]


def test_a_full_disk_leaves_the_old_file(three):
    path = three / checkpoint_name(100)
    before = {each: each.read_bytes() for each in three.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot write .*: File too large; free"
        ) as caught:
            save(content(7), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert {each: each.read_bytes() for each in three.iterdir()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_is_told(three, monkeypatch):
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), "wb"))
    with pytest.raises(CheckpointError, match="No space left on device; free space"):
        save(content(7), three / checkpoint_name(100))
    monkeypatch.undo()
    assert same(load(three / checkpoint_name(100)), content(100))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*; free space or choose another"):
        save(content(), tmp_path / "file" / "last" / "a.ckpt")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(content(), Path("/proc/qat/a.ckpt"))


def test_checking_a_folder_imports_nothing_heavy(three):
    code = (
        "import sys; from qat.storage.checkpoint import last_good; last_good(sys.argv[1]);"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules), 'heavy'"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(three)], check=True, env=environment)
