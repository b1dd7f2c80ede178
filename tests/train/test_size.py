"""The folder of a real run, in sizes of its float network: while it runs, and at its end."""

import contextlib
import time

import pytest
import torch

from qat.storage.checkpoint import checkpoints_by_step, load
from support.real_run import start


def size(folder):
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # just replaced
            total += path.stat().st_size if path.is_file() else 0
    return total


@pytest.mark.slow
def test_a_folder_stays_small(tmp_path):
    folder, largest = tmp_path / "run", 0
    process = start(
        "model=vgg11", "debug=quick", "trainer.max_epochs=4", "training.checkpoint_every=2",
        "data.batch_size=8", f"hydra.run.dir={folder}", cwd=tmp_path,
    )  # fmt: skip
    while process.poll() is None:
        largest = max(largest, size(folder))
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()
    (last,) = checkpoints_by_step(folder / "checkpoints" / "last").values()
    state = load(last)["state_dict"]
    weights = sum(tensor.nbytes for tensor in state.values())
    assert size(folder) <= 4.2 * weights
    # in the moment of a save a second state, whose old one is still good
    assert largest <= 6.2 * weights


def test_what_a_finished_run_keeps(trained):
    checkpoints = trained / "checkpoints"
    assert list(checkpoints_by_step(checkpoints / "last")) == [68]
    (last,), (best,) = ((checkpoints / part).glob("*.ckpt") for part in ("last", "best"))
    for path in (best, checkpoints / "warm_start.ckpt"):
        assert path.stat().st_size < 0.55 * last.stat().st_size  # without momentum
        assert "optimizer_states" not in load(path)
    content = load(last)
    latent = content["optimizer_states"][0]["qat"]["latent"]
    for name, weight in latent.items():  # stored once
        assert content["state_dict"][f"net.{name}"].data_ptr() == weight.data_ptr()


def test_any_checkpoint_opens_with_plain_torch(trained):
    for path in (trained / "checkpoints").rglob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        assert len(content["state_dict"]["net.conv2.weight"].unique()) > 2  # the float weights
