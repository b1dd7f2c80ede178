"""Peers really train on few levels, in our loop, and leave a run folder of our form."""

import csv
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qat.compose import checked, conf_folder
from qat.errors import NonFiniteError, NotOnGridError, SpecError
from qat.peers import run as peer_run_module
from qat.peers.methods import METHODS, peer_of
from qat.peers.peer import Peer
from qat.peers.run import run_peer
from qat.train.run import run_job

pytestmark = pytest.mark.slow  # other packages, for five rows of two tables

OWN = ["model=lenet5", "data=digits", "seed=3", "quant=float", "training.threads=1"]
BUDGET = ["trainer.max_epochs=3", "warm_start.epochs=1"]
PACKAGES = {"parq": "torchao", "brevitas": "brevitas"}
BITS = {
    "parq_binary_relax_w1a32": (1, 32),
    "parq_w1a32": (1, 32),
    "brevitas_w1a4": (1, 4),
    "brevitas_w4a4": (4, 4),
    "torch_ao_w4a4": (4, 4),
}


def composed(*overrides):
    """The config and the spec of a short run."""
    given = [*OWN, *BUDGET, *overrides]
    spec = checked(conf_folder(), given).spec
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", given), resolve=True), spec


def run(method, folder, *overrides, peer=None):
    """Train it; returns whether it was trained now."""
    config, spec = composed(*overrides)
    return run_peer({**config, "peer": {"name": method}}, spec, folder, peer or peer_of(method))


class Operands(TorchFunctionMode):
    """Different values in (input, weight) of every convolution and linear map, as they happen."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.conv2d, F.conv2d, F.linear):
            # Brevitas hands over its own kind of tensor
            image, weight = (getattr(a, "value", a).detach() for a in args[:2])
            self.counts.append((len(image.unique()), len(weight.unique())))
        return function(*args, **(kwargs or {}))


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def validated(folder):
    return [
        (r["step"], r["epoch"], r["val/acc"], r["val/loss"]) for r in rows(folder) if r["val/acc"]
    ]


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "float"
    assert run("float", folder)
    return folder


@pytest.fixture(scope="module", params=list(BITS))
def trained(request, tmp_path_factory):
    """(method, folder, the network that was selected)."""
    pytest.importorskip(PACKAGES.get(request.param.partition("_")[0], "torch"))
    folder = tmp_path_factory.mktemp("peers") / request.param
    kept = []
    audited = peer_run_module.audited

    def keeping(peer, net, twin, example):
        kept.append((net, example))
        return audited(peer, net, twin, example)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_run_module, "audited", keeping)
        assert run(request.param, folder)
    return request.param, folder, kept[0]


def test_every_method_is_tried():
    assert {*BITS, "float"} == set(METHODS)


def test_the_control_repeats_our_float_run(control, tmp_path):
    config, spec = composed()
    run_job(config, spec, tmp_path)
    assert validated(tmp_path) == validated(control)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (tmp_path, control))
    for state in ("warm_start", "last", "selected"):
        for key, value in ours[state].items():
            assert theirs[state][key] == value, (state, key)
    for key in ("bits", "bytes", "float_bytes", "bops", "ace", "steps", "epochs", "seed"):
        assert theirs[key] == ours[key], key
    # of a callback, and of our own exports, which the peers' loop has not
    assert {*ours} - {*theirs} == {"export", "occupancy"}


def test_operands_lie_on_few_levels(trained):
    method, _, (net, example) = trained
    weight_bits, activation_bits = BITS[method]
    with torch.no_grad(), Operands() as seen:
        net.eval()(example.repeat(8, 1, 1, 1))
    inputs, weights = zip(*seen.counts, strict=True)
    assert len(weights) == 5
    assert all(2 <= count <= 2**weight_bits for count in weights)
    assert any(count > 2 for count in weights) == (weight_bits > 1)
    if activation_bits < 32:
        assert all(2 < count <= 16 for count in inputs[1:])
    else:
        assert all(count > 16 for count in inputs[1:])


def test_the_float_phase_is_that_of_the_control(trained, control):
    assert validated(trained[1])[0] == validated(control)[0]
    assert validated(trained[1])[1] != validated(control)[1]


def test_the_folder_has_the_form_of_a_run(trained, control):
    method, folder, _ = trained
    status = json.loads((folder / "status.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert (status["state"], status["error"], status["threads"]) == ("finished", None, 1)
    assert {*summary} == {*json.loads((control / "summary.json").read_text())}
    for state in ("warm_start", "last", "selected"):
        keys = {"epoch", "global_step", "val_acc", "val_loss", "test_acc", "test_loss"}
        assert {*summary[state]} - {"confusion"} == keys
    assert [summary[s]["epoch"] for s in ("warm_start", "last")] == [1, 3]
    weight_bits, activation_bits = BITS[method]
    assert summary["bits"] == weight_bits
    assert summary["quantized_share"] == 1.0
    assert {layer["input_bits"] for layer in summary["audit"][1:]} == {activation_bits}
    assert all(2 <= layer["levels"] <= 2**weight_bits for layer in summary["audit"])
    assert [*rows(folder)[0]] == [*rows(control)[0]]


def test_selected_is_the_first_best_validation_epoch_on_hard_weights(trained):
    _, folder, _ = trained
    hard = [r for r in rows(folder) if r["val/acc"] and float(r["quant/theta"]) == 1]
    best = max(hard, key=lambda r: float(r["val/acc"]))
    selected = json.loads((folder / "summary.json").read_text())["selected"]
    assert selected["epoch"] == int(best["epoch"]) + 1
    assert selected["val_acc"] == float(best["val/acc"])


def test_a_finished_folder_is_skipped_and_another_config_refused(control):
    before = (control / "summary.json").stat().st_mtime_ns
    assert not run("float", control)
    assert (control / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(SpecError, match="another config"):
        run("float", control, "optimizer.lr=0.03")


def test_an_interrupted_run_starts_anew(control, tmp_path, capsys):
    assert run("float", tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    cut = status | {"state": "running", "threads": 7, "seconds": 9e9}
    (tmp_path / "status.json").write_text(json.dumps(cut))
    capsys.readouterr()
    assert run("float", tmp_path)
    assert "starts anew" in capsys.readouterr().out
    assert (tmp_path / "metrics.csv").read_bytes() == (control / "metrics.csv").read_bytes()
    assert json.loads((tmp_path / "summary.json").read_text())["wall_seconds"] < 1e6


def test_a_peer_that_quantizes_nothing_is_found_out(tmp_path):
    with pytest.raises(NotOnGridError, match="did not quantize"):
        run("parq_w1a32", tmp_path, peer=Peer(weight_bits=1))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="lower optimizer"):
        run("float", tmp_path, "optimizer.lr=1e6", "optimizer.momentum=0.99")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=1.0",
        "trainer.limit_train_batches=3",
        "trainer.accelerator=gpu",
        "training.bn_reestimate=2",
        "training.compile=true",
        "warm_start.epochs=3",
    ],
)
def test_options_that_the_loop_lacks_are_refused(override, tmp_path):
    with pytest.raises(SpecError, match=override.partition("=")[0]):
        run("float", tmp_path, override)
    assert not (tmp_path / "status.json").exists()
