"""Checkpoints under a real Lightning Trainer: the same whatever the parameters show."""

import lightning as L
import pytest
import torch

from qat.train.weights import network_state, restore
from support.digits_run import fit, module

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


class Saving(L.Callback):
    """Saves after the sixth step, in the second epoch, showing each kind of weights."""

    def __init__(self, folder):
        self.folder, self.values = folder, {}

    def on_train_batch_end(self, trainer, lit, *_):
        if trainer.global_step == 6:
            with lit.quant_optimizer.hard_weights():
                self.save(trainer, lit, "inside")
            self.save(trainer, lit, "outside")

    def save(self, trainer, lit, name):
        self.values[name] = len(lit.net[8].weight.unique())
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")


def test_a_checkpoint_resumes_the_same_from_inside_hard_weights(tmp_path):
    whole, saving = module("binary_relax", warm=1, hard_from=1.0), Saving(tmp_path)
    fit(whole, saving, epochs=3)
    assert saving.values == {"inside": 2, "outside": 320}
    for name in saving.values:
        resumed = module("binary_relax", warm=1, hard_from=1.0)
        with torch.no_grad():
            resumed.net[8].weight.zero_()
        fit(resumed, epochs=3, ckpt_path=tmp_path / f"{name}.ckpt")
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


def test_restore_reads_latent_and_hard_weights_from_either_checkpoint(tmp_path):
    saving, lit = Saving(tmp_path), module("binary_relax", hard_from=1.0)
    fit(lit, saving)
    states = []
    for name in saving.values:
        file = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        latent = network_state(file)
        assert restore(lit.net, lit.spec, file, weights="latent") == []
        assert torch.equal(lit.net[8].weight, latent["8.weight"])
        assert len(lit.net[8].weight.unique()) == 320
        restore(lit.net, lit.spec, file, weights="hard")
        w = latent["8.weight"]
        assert torch.equal(lit.net[8].weight, torch.where(w >= 0, 1.0, -1.0) * w.abs().mean())
        states.append(latent)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])


def test_test_runs_on_hard_weights_and_leaves_forward_ones():
    lit = module("binary_relax", hard_from=1.0)
    trainer, data = fit(lit)
    forward = lit.net[8].weight.detach().clone()
    seen = []
    lit.net[8].register_forward_pre_hook(lambda m, _: seen.append(len(m.weight.unique())))
    trainer.test(lit, data, verbose=False)
    assert seen == [2, 2]
    assert torch.equal(lit.net[8].weight, forward)


@pytest.mark.parametrize("step", [2, 6], ids=["float", "relaxed"])
def test_lightning_tests_a_checkpoint_as_the_run_would(step, tmp_path):
    """Its weights are latent, so that they are stored once; hard ones are what a test sees."""
    trained = module("binary_relax", warm=1, hard_from=1.0)
    trainer, data = fit(trained, SaveAt(step, tmp_path / "at.ckpt"))
    other = module("binary_relax", warm=1, hard_from=1.0)
    trainer.test(other, data, ckpt_path=tmp_path / "at.ckpt", weights_only=True, verbose=False)
    latent = network_state(torch.load(tmp_path / "at.ckpt", weights_only=True))["8.weight"]
    hard = torch.where(latent >= 0, 1.0, -1.0) * latent.abs().mean()
    assert torch.equal(other.net[8].weight, latent if step < 4 else hard)


class SaveAt(L.Callback):
    """Saves after so many steps."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
