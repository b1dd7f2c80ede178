"""Checkpoints with a right sha256 and a wrong content: one line at every door, no number of NaN."""

import shutil
import sys

import pytest
import torch

import qat
from qat.commands.train import main
from qat.errors import CheckpointError
from qat.storage.checkpoint import load, save
from qat.train.weights import read_weights, restore


def first_weight(content, value):
    key = next(key for key in content["state_dict"] if key.endswith("conv1.weight"))
    weight = value(content["state_dict"][key])
    content["state_dict"][key] = weight
    for optimizer in content.get("optimizer_states", ()):  # of a whole checkpoint
        optimizer["qat"]["latent"][key.removeprefix("net.")] = weight


def with_nan(weight):
    weight = weight.clone()
    weight.view(-1)[3] = float("nan")
    return weight


CHANGES = {
    "no state": lambda c: c.pop("state_dict"),
    "a number for a state": lambda c: c.update(state_dict=3),
    "a list for a state": lambda c: c.update(state_dict=[1]),
    "numbers for tensors": lambda c: c["state_dict"].update({"net.fc3.bias": 1}),
    "keys that are no texts": lambda c: c["state_dict"].update({3: torch.ones(1)}),
    "a text for the optimizers": lambda c: c.update(optimizer_states="x"),
    "numbers for the optimizers": lambda c: c.update(optimizer_states=[1]),
    "no latent weights": lambda c: c.update(optimizer_states=[{"qat": 3}]),
    "latent weights of no network": lambda c: c.update(optimizer_states=[{"qat": {"latent": [1]}}]),
    "nothing of ours": lambda c: c.update(qat=None),
    "sparse": lambda c: first_weight(c, lambda w: w.to_sparse()),
    "without data": lambda c: first_weight(c, lambda w: w.to("meta")),
    "of another shape": lambda c: first_weight(c, lambda w: w[:1]),
    "complex": lambda c: first_weight(c, lambda w: w.to(torch.complex64)),
    "NaN": lambda c: first_weight(c, with_nan),
    "infinite": lambda c: first_weight(c, lambda w: w / 0),
}


def changed(trained, folder, name, kinds=("best", "last")):
    """A copy of a run whose checkpoints say something else, signed anew."""
    shutil.copytree(trained, folder)
    for kind in kinds:
        for path in (folder / "checkpoints" / kind).glob("*.ckpt"):
            content = load(path)
            CHANGES[name](content)
            save(content, path)
    return folder


@pytest.mark.parametrize("state", ["selected", "last"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_opened_or_refused_in_one_line(name, state, trained, tmp_path):
    folder = changed(trained, tmp_path / "run", name)
    with pytest.raises(CheckpointError) as caught:
        qat.load_trained(folder, state=state)
    assert "\n" not in str(caught.value)
    assert "step=" in str(caught.value)
    if name in ("NaN", "infinite"):
        assert "in conv1" in str(caught.value)
        assert "no numbers" in str(caught.value)


def test_weights_from_it_are_refused_too(trained, tmp_path):
    net, spec = qat.load_trained(trained)
    folder = changed(trained, tmp_path / "run", "NaN")
    with pytest.raises(CheckpointError, match=r"init_from=x holds values in .*conv1"):
        restore(net, spec, read_weights(folder, net), name="init_from=x")


AT_NIGHT = {*CHANGES} - {
    "complex",
    "numbers for tensors",
    "numbers for the optimizers",
    "nothing of ours",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in AT_NIGHT else ()) for n in CHANGES],
)
def test_no_run_goes_on_from_it(name, trained, tmp_path, monkeypatch, capsys):
    folder = changed(trained, tmp_path / "run", name)
    words = [f"resume={folder}", "trainer.max_epochs=5", "resume_allow=[trainer.max_epochs]"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"x" * 1000, b"\x80\x02}q\0(", b"\x80\x02h\x07."]
)
def test_files_of_tensors_that_are_none(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}.*give a file of tensors") as e:
        restore_from(path)
    assert "\n" not in str(e.value)


def restore_from(path):
    """A file of nothing is a state dict, which fits no network."""
    net = torch.nn.Linear(2, 2)
    try:
        restore(net, qat.QuantSpec(), read_weights(path, net), name=str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give a file of tensors") from None
