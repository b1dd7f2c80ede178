"""Post-training quantization by the real command: a whole run without training, and its start."""

import json

import pytest
import torch

from support.real_run import PLAIN, kill_after, tensors, train

START = ("model=lenet5", "training.threads=1", "trainer.enable_progress_bar=false", *PLAIN)
NO_EPOCH = ("quant=bcgd_w4a4", "trainer.max_epochs=0", "init.images=128")


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A float run of two epochs."""
    place = tmp_path_factory.mktemp("floats")
    options = ("quant=float", "warm_start.epochs=0", "trainer.max_epochs=2")
    train(*START, *options, "hydra.run.dir=floats", cwd=place)
    return place / "floats"


@pytest.fixture(scope="module")
def quantized(floats):
    """Folder and words of a run without an epoch."""
    folder = floats.parent / "comq"
    told = train(
        *START, *NO_EPOCH, "init=comq", f"init_from={floats}", f"hydra.run.dir={folder}",
        cwd=folder.parent,
    )  # fmt: skip
    return folder, told


def test_a_run_without_an_epoch_is_whole(quantized):
    folder, told = quantized
    assert "init: comq, layer 1 of 5: conv1" in told
    assert "init: comq in" in told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == summary["epochs"] == 0
    assert summary["last"]["test_acc"] == summary["selected"]["test_acc"] > 0.5
    assert [layer["name"] for layer in summary["init"]["layers"]] == [
        "conv1", "conv2", "fc1", "fc2", "fc3",
    ]  # fmt: skip
    assert all(fit["error"] <= fit["rounding"] for fit in summary["init"]["layers"])
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "report.html").is_file()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    assert "is finished" in train(f"resume={folder}", cwd=folder.parent)


def test_exported_codes_are_those_that_were_chosen(quantized):
    from safetensors import safe_open

    from qat.nn.weight import WeightQuantizer
    from support import ROOT

    folder, _ = quantized
    told = train(f"run={folder}", cwd=folder.parent, script=ROOT / "scripts/export.py")
    assert "logits bit for bit the run's" in told
    with safe_open(str(folder / "export/packed.safetensors"), "pt") as file:
        assert file.keys()
    quantizer = WeightQuantizer(4)
    for name, weight in tensors(folder).items():
        if name.startswith("net.") and name.endswith(".weight") and weight.ndim > 1:
            assert torch.equal(quantizer(weight), weight), name


def test_training_goes_on_from_it_and_resumes_to_the_bit(floats, tmp_path):
    options = (
        *START, "quant=bcgd_w4a4", "init=comq", "init.images=128", f"init_from={floats}",
        "warm_start.epochs=0", "trainer.max_epochs=3", "training.checkpoint_every=5",
    )  # fmt: skip
    train(*options, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    kill_after(20, tmp_path / "killed", *options, cwd=tmp_path)
    told = train(f"resume={tmp_path / 'killed'}", cwd=tmp_path)
    assert "init: comq" not in told  # what the checkpoint holds has been through it
    whole, killed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    kept = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "killed")]
    assert kept[0]["last"] == kept[1]["last"]
    assert kept[0]["init"]["layers"] == kept[1]["init"]["layers"]


@pytest.mark.slow
def test_a_sweep_and_its_report_treat_it_as_any_run(floats, tmp_path):
    from support import ROOT

    train(
        "-m", *START, *NO_EPOCH, "init=rounding,comq,magr_comq", f"init_from={floats}",
        "sweep.name=ptq", cwd=tmp_path,
    )  # fmt: skip
    runs = sorted((tmp_path / "sweeps/ptq").glob("*/summary.json"))
    assert len(runs) == 3
    told = train("sweeps/ptq", cwd=tmp_path, script=ROOT / "scripts/report.py")
    assert "3 of 3 runs finished" in told
