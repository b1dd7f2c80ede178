"""A real run with weights quantized in the graph: killed, resumed, loaded, and started from."""

import json

import pytest
import torch

from qat import load_trained
from qat.quantize.weights import weight_parametrizations
from support.real_run import differences, kill_after, tensors, train

# scheduled coarse derivatives in weights and activations, shifts, signs
SMALL = [
    "model=lenet5", "quant=reste_w1a1", "quant.activation.shift=channel", "trainer.max_epochs=3",
    "warm_start.epochs=1", "training.threads=1", "training.checkpoint_every=9",
]  # fmt: skip


# by day tests/promises/test_in_graph.py resumes every method in the process
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_graph") / "run"
    train(*SMALL, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


def test_a_killed_run_ends_on_the_same_bits(run, tmp_path):
    folder = tmp_path / "killed"
    kill_after(27, folder, *SMALL, cwd=tmp_path)
    train(f"resume={folder}", cwd=tmp_path)
    assert differences(run, folder) == []
    assert (folder / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_the_schedule_has_moved_and_is_in_the_checkpoint(run):
    exponents = {k: v.item() for k, v in tensors(run).items() if k.endswith("sharpness")}
    assert len(exponents) == 5 + 4  # weights and activations of LeNet-5
    # the last of 34 steps sees progress 33 / 34
    expected = 1 + 2 * (1 - torch.cos(torch.tensor(torch.pi / 2 * 33 / 34)).item())
    assert list(exponents.values()) == pytest.approx([expected] * 9, rel=1e-5)


def test_the_summary_speaks_of_it_and_it_loads(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rule"]["method"] == "reste"
    assert summary["quantized_share"] == 1
    assert summary["bits"] == 1
    net, spec = load_trained(run)
    assert spec.weight.method == "reste"
    for name, _ in weight_parametrizations(net):
        assert len(net.get_submodule(name).weight.unique()) == 2
    with torch.no_grad():
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_starts_from_a_float_one_and_from_its_like(run, tmp_path):
    floats = tmp_path / "float"
    quick = ["model=lenet5", "debug=quick", "training.threads=1"]
    train(*quick, "quant=float", f"hydra.run.dir={floats}", cwd=tmp_path)
    out = train(
        *quick, "quant=lsq_w4a4", "warm_start.epochs=0", f"init_from={floats}",
        f"hydra.run.dir={tmp_path / 'lsq'}", cwd=tmp_path,
    )  # fmt: skip
    assert "100.00 % of the weights that enter products on their grids" in out
    like = [o for o in SMALL if "epochs" not in o and "model" not in o and "threads" not in o]
    train(
        *quick, *like, "warm_start.epochs=0", f"init_from={run}",
        f"hydra.run.dir={tmp_path / 'again'}", cwd=tmp_path,
    )  # fmt: skip
