"""Nothing that is not finite is applied or saved."""

from functools import partial

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import NonFiniteError
from qat.lit.resume.checkpoint_io import SafeCheckpointIO, checkpoints_by_step, last_good
from qat.lit.resume.guards import FiniteGuard, _are_finite
from qat.lit.resume.warm_start import KeepWarmStart
from qat.storage.checkpoint import load
from support import digits_run, toy_run
from support.toy_run import StopAt, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*LeafSpec")


class Poison(L.Callback):
    """Spoils one batch, or one gradient, at a given step."""

    def __init__(self, step, where):
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.where == "batch" and trainer.global_step == self.step:
            batch[0][0, 0, 0, 0] = float("nan")

    def on_after_backward(self, trainer, module):
        if self.where == "gradient" and trainer.global_step == self.step:
            module.net[5].bias.grad[3] = float("inf")


@pytest.mark.parametrize(
    ("where", "message"),
    [("batch", "step 9: the loss is nan"), ("gradient", r"step 9: the gradient of net\.5\.bias")],
)
def test_nan_stops_before_the_update_and_overwrites_nothing(tmp_path, where, message):
    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 8), every=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")}
    quiet_model = toy_run.Toy()
    trainer = toy_run.trainer(tmp_path, Poison(8, where), every=1)
    start = last_good(tmp_path / "checkpoints" / "last")
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit(quiet_model, toy_run.Data(0), ckpt_path=start)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")} == before
    assert all(torch.isfinite(p).all() for p in quiet_model.parameters())
    assert trainer.global_step == 8


def test_under_a_gradient_scaler_infinite_gradients_pass_and_a_bad_loss_does_not():
    guard = toy_run.FiniteGuard()
    module = toy_run.Toy()
    module.net[5].bias.grad = torch.full((10,), float("inf"))
    module.last_loss = torch.tensor(1.0)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(NonFiniteError, match="gradient of net"):
        guard.on_before_optimizer_step(trainer, module, None)
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu")
    guard.on_before_optimizer_step(trainer, module, None)
    module.last_loss = torch.tensor(float("nan"))
    with pytest.raises(NonFiniteError, match="loss is nan"):
        guard.on_before_optimizer_step(trainer, module, None)


def test_non_finite_state_is_never_saved(tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 8:
                module.net[1].running_var[0] = float("inf")

    with pytest.raises(NonFiniteError, match=r"net\.1\.running_var is not finite at step 8"):
        fit(tmp_path, Spoil(), every=1)
    assert max(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == 7


def test_a_warm_start_says_where_it_was_kept(tmp_path):
    """After the one float epoch; Lightning opens it, too."""
    lit = digits_run.module(warm=1)
    trainer, data = digits_run.fit(lit, KeepWarmStart(tmp_path), plugins=[SafeCheckpointIO()])
    kept = tmp_path / "warm_start.ckpt"
    content = load(kept)
    assert (content["epoch"], content["global_step"]) == (1, digits_run.BATCHES)
    (scores,) = trainer.validate(lit, data, ckpt_path=kept, verbose=False)
    assert 0 <= scores["val/acc"] <= 1


def test_a_warm_start_that_is_not_finite_is_not_kept(tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.net[1].running_var[0] = float("inf")

    message = rf"net\.1\.running_var is not finite at step {digits_run.BATCHES};"
    with pytest.raises(NonFiniteError, match=message):
        digits_run.fit(digits_run.module(warm=1), KeepWarmStart(tmp_path), Spoil())
    assert not list(tmp_path.iterdir())


@given(
    st.lists(st.lists(st.floats(width=32), min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_the_fused_check_sees_every_bad_entry(values, dtype):
    grads = [torch.tensor(each, dtype=torch.float64).to(dtype) for each in values]
    bad = any(not torch.isfinite(grad).all() for grad in grads)
    if bad:
        assert not _are_finite(grads)
    elif all(grad.abs().max() < 1e37 for grad in grads):
        assert _are_finite(grads)


def test_the_device_is_waited_for_once_per_step():
    syncs = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__float__):
                syncs.append(function)
            return function(*args, **(kwargs or {}))

    module = toy_run.Toy()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.last_loss = torch.tensor(1.0)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with Count():
        toy_run.FiniteGuard().on_before_optimizer_step(trainer, module, None)
    assert len(syncs) == 1


class Spoiled(L.Callback):
    """Batches that are no numbers, at given batches of the whole training."""

    def __init__(self, *steps):
        self.steps, self.seen = steps, 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 in self.steps:
            batch[0][0, 0, 0, 0] = float("nan")


def fitted(*callbacks, skips=2, **options):
    lit, guard = digits_run.module("bcgd", base=options.pop("base", None)), FiniteGuard(skips)
    trainer, _ = digits_run.fit(lit, guard, *callbacks, **options)
    return lit, trainer


@pytest.mark.parametrize("base", [None, partial(torch.optim.AdamW, lr=0.01)], ids=["SGD", "AdamW"])
def test_a_step_left_out_is_as_if_its_batch_had_not_been(base):
    """Weights, moments, running statistics and means: those of a training without that batch."""

    class WithoutThird(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 2:
                module.recall()
                optimizer.zero_grad(set_to_none=True)

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.remember()

    skipping, trainer = fitted(Spoiled(2), base=base)
    plain, other = fitted(WithoutThird(), skips=0, base=base)
    for key, value in plain.state_dict().items():
        assert torch.equal(skipping.state_dict()[key], value), key
        assert bool(value.isfinite().all())
    assert trainer.global_step == other.global_step == 2 * digits_run.BATCHES
    for name, value in other.callback_metrics.items():
        assert torch.equal(trainer.callback_metrics[name], value), name
    assert float(trainer.callback_metrics["train/skipped"]) == 0  # of the second epoch


def test_too_many_steps_in_a_row_stop():
    fitted(Spoiled(2, 3, 5, 6))
    with pytest.raises(NonFiniteError, match="step 5: the loss is nan"):
        fitted(Spoiled(2, 3, 4))


def test_accumulated_gradients_are_left_out_together():
    lit, trainer = fitted(Spoiled(2), accumulate_grad_batches=2)
    assert trainer.global_step == digits_run.BATCHES
    assert all(bool(v.isfinite().all()) for v in lit.state_dict().values())
