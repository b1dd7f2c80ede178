"""Quantize on LightningModules that know nothing of it."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from loop.modules import MODULES
from torch import nn

from qat.loop.callback import Quantize
from support.products import mostly_slow

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*validation_step"
)
EPOCHS = 3


def trainer(folder, *callbacks, **options):
    options = {"max_epochs": EPOCHS} | options
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip


def made(name):
    torch.manual_seed(0)
    return MODULES[name]()


def fit(chief, module, **options):
    is_judged = type(module).validation_step is not L.LightningModule.validation_step
    chief.fit(module, module.data(), module.data() if is_judged else None, **options)


def quantize(name, spec="bcgd_w1a4", **options):
    chosen = MODULES[name].network
    return Quantize(spec, module=chosen or None, **options)


class Levels(L.Callback):
    """Counts the levels of every weight of the network at every forward of training."""

    def __init__(self, quantizer):
        self.quantizer, self.forwards, self.hooked = quantizer, 0, False

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.hooked:
            self.hooked = True
            for layer in self.quantizer.quantization.net.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    layer.register_forward_pre_hook(self.look)

    def look(self, layer, _):
        if layer.training and torch.is_grad_enabled():
            self.forwards += 1
            values = layer.weight.unique()
            assert len(values) == 2
            assert values[0] == -values[1]


@pytest.mark.parametrize("name", MODULES)
def test_every_forward_of_training_sees_two_levels(name, tmp_path):
    module, callback = made(name), quantize(name)
    levels = Levels(callback)
    fit(trainer(tmp_path, callback, levels, enable_checkpointing=False), module)
    assert levels.forwards >= EPOCHS * 3 * 3
    assert callback.found.bits < 8
    steps = callback.quantization.phases.optimizers[0].completed_steps
    assert steps == EPOCHS * 3
    assert callback.save_packed(tmp_path / "net.safetensors") > 0


SPECS = ("bcgd_w1a4", "binary_relax_w2a4", "lsq_w4a4", "bcgd_w1a1")
FITS = [(name, spec) for name in MODULES for spec in SPECS]


# by day each module once, each method twice
@pytest.mark.parametrize(("name", "spec"), mostly_slow(FITS, {4 * i + i % 4 for i in range(8)}))
def test_a_fit_that_goes_on_ends_on_the_same_bits(name, spec, tmp_path):
    def states(folder, epochs, **options):
        module, callback = made(name), quantize(name, spec, warm_start_epochs=1, steps=EPOCHS * 3)
        saved = ModelCheckpoint(folder, save_last=True)
        chief = trainer(folder, callback, saved, max_epochs=epochs)
        fit(chief, module, **options)
        optimizers = [copy.deepcopy(o.state_dict()) for o in chief.optimizers]
        return copy.deepcopy(module.state_dict()), optimizers, callback

    whole, ends, _ = states(tmp_path / "whole", EPOCHS)
    for stop in (1, 2):  # at the switch, and after it
        folder = tmp_path / str(stop)
        states(folder, stop)
        state, optimizers, callback = states(folder, EPOCHS, ckpt_path=folder / "last.ckpt")
        assert callback.quantization.is_quantized
        assert state.keys() == whole.keys()
        assert all(torch.equal(state[key], whole[key]) for key in whole)
        torch.testing.assert_close(optimizers, ends, rtol=0, atol=0)


def test_a_checkpoint_loads_without_the_callback_as_the_float_network(tmp_path):
    for name in MODULES:
        module, callback = made(name), quantize(name)
        saved = ModelCheckpoint(tmp_path / name, save_last=True)
        chief = trainer(tmp_path, callback, saved)
        fit(chief, module)
        path = tmp_path / name / "last.ckpt"
        if name == "Regressor":
            continue  # has no network before a trainer asks for it
        plain = MODULES[name].load_from_checkpoint(path)
        latent = {}
        for optimizer in callback.quantization.phases.optimizers:
            latent |= optimizer.latent_weights_by_parameter()
        held = {n: latent[p] for n, p in module.named_parameters() if p in latent}
        assert len(held) >= 3
        for key, value in held.items():
            assert torch.equal(plain.state_dict()[key], value)
            assert len(value.unique()) > 2
