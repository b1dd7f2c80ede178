"""The same command twice is the same bits, and another seed is another run."""

import pytest

from support.real_run import SAVING, SMALL, differences, train


@pytest.mark.slow
def test_the_same_seed(trained, tmp_path):
    """`trained` came from a process that started cold; this one may be forked from a warm one."""
    folder = tmp_path / "run"
    train(*SMALL, SAVING, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert differences(folder, trained) == []
    for name in ("metrics.csv", "layers.csv", "histograms.csv"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow
def test_another_seed(trained, tmp_path):
    folder = tmp_path / "run"
    train(*SMALL, SAVING, "seed=2", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert any("weight" in name for name in differences(folder, trained))
