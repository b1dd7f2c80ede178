"""Resume is bitwise, from any step: weights, metrics.csv, selection, what is seen and validated."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from qat.errors import NonFiniteError, SpecError
from qat.lit.checkpoint import checkpoints_by_step, last_good, load, verify
from qat.lit.data.loader import training_position
from qat.lit.run_checkpoint import RunCheckpoint
from qat.lit.signals import Interrupted, Signals

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
import toy_run  # noqa: E402
from toy_run import BATCHES, StopAt, digest, fit  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def outcome(folder, trainer, model):
    """Everything that an interruption must not change."""
    best = trainer.callbacks[0].best
    return {
        "weights": digest(model),
        "metrics": (folder / "metrics.csv").read_bytes(),
        "best": best,
        "best weights": digest_of(load(folder / "checkpoints" / best["path"])["state_dict"]),
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "files": sorted(checkpoints_by_step(folder / "checkpoints" / "last")),
    }


def digest_of(state):
    return [tensor.double().sum().item() for tensor in state.values()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Outcome of the run that nothing stops, by options; each is run once."""
    known = {}

    def run(**options):
        key = tuple(sorted(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            trainer, model = fit(folder, **options)
            known[key] = outcome(folder, trainer, model), model.seen, model.validations
        return known[key]

    return run


def interrupted(folder, hook, step, **options):
    """Stop inside a hook, resume in a fresh process state, and return what came out."""
    with pytest.raises(InterruptedError):
        fit(folder, StopAt(hook, step), **options)
    saved = last_good(folder / "checkpoints" / "last")
    trainer, model = fit(folder, resume=saved is not None, **options)
    return outcome(folder, trainer, model), model


# every=1 saves at each boundary, so each of these resumes from exactly the step it stopped at
@pytest.mark.parametrize("step", [1, 2, 6, 7, 8, 13, 14, 15, 20])
def test_resume_from_any_step_is_bitwise(tmp_path, undisturbed, step):
    want, seen, _ = undisturbed(every=1)
    got, model = interrupted(tmp_path, "on_train_batch_start", step, every=1)
    assert got == want
    assert model.seen == seen[step:]


@pytest.mark.parametrize(
    ("hook", "step", "resumed_at"),
    [
        ("on_train_batch_start", 3, 0),  # before the first checkpoint
        ("on_train_batch_end", 5, 0),
        ("on_train_batch_end", 6, 5),
        ("on_train_batch_end", 7, 5),  # the last batch of an epoch
        ("on_validation_start", 7, 5),
        ("on_validation_batch_end", 7, 5),
        ("on_validation_end", 14, 10),
        ("on_train_epoch_end", 14, 10),
        ("on_train_epoch_start", 14, 14),
        ("on_before_optimizer_step", 17, 15),
        ("on_train_epoch_end", 21, 20),
        ("on_train_end", 21, 21),
    ],
)
def test_a_crash_in_any_hook_repeats_at_most_one_interval(
    tmp_path, undisturbed, hook, step, resumed_at
):
    want, seen, validations = undisturbed(every=5)
    got, model = interrupted(tmp_path, hook, step, every=5)
    assert got == want
    assert model.seen == seen[resumed_at:]
    assert model.validations == validations - resumed_at // BATCHES


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"accumulate_grad_batches": 2, "every": 1}, [1, 3, 4, 5, 11]),
        ({"max_epochs": -1, "max_steps": 17, "every": 1}, [3, 7, 8, 14]),
        ({"val_check_interval": 3, "every": 1}, [3, 4, 7, 10]),
        ({"check_val_every_n_epoch": 2, "every": 1}, [7, 14, 16]),
        ({"limit_train_batches": 4, "every": 1}, [3, 4, 5]),
        ({"workers": 1, "every": 1}, [2, 7, 10]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_is_bitwise_under_other_options(tmp_path, undisturbed, options, steps):
    want, seen, _ = undisturbed(**options)
    for step in steps:
        got, model = interrupted(tmp_path / str(step), "on_train_batch_start", step, **options)
        assert got == want, step
        assert model.seen == seen[-len(model.seen) :], step


def test_a_run_stopped_at_every_step_in_turn_is_bitwise(tmp_path, undisturbed):
    want, _, _ = undisturbed(every=1)
    for step in range(1, 21):
        with pytest.raises(InterruptedError):
            fit(tmp_path, StopAt("on_train_batch_end", step + 1), resume=step > 1, every=1)
    trainer, model = fit(tmp_path, resume=True, every=1)
    assert outcome(tmp_path, trainer, model) == want
    assert len(model.seen) == 1


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    first = outcome(tmp_path, *fit(tmp_path))
    trainer, model = fit(tmp_path, resume=True)
    assert model.seen == []
    assert outcome(tmp_path, trainer, model) == first


@pytest.mark.parametrize("damaged", [1, 2])
def test_fallback_to_an_older_checkpoint_is_bitwise(tmp_path, undisturbed, damaged, caplog):
    want, _, _ = undisturbed(every=5)
    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 16), every=5)
    last = checkpoints_by_step(tmp_path / "checkpoints" / "last")
    assert list(last) == [14, 15]
    for step in [15, 14][:damaged]:
        last[step].write_bytes(last[step].read_bytes()[:-100])
    if damaged == 2:
        with pytest.raises(Exception, match=r"every checkpoint .* is damaged"):
            last_good(tmp_path / "checkpoints" / "last")
        return
    trainer, model = fit(tmp_path, resume=True, every=5)
    assert "step=00000015.ckpt is cut short" in caplog.text
    assert outcome(tmp_path, trainer, model) == want


def test_testing_with_the_selected_weights_leaves_the_run_alone(tmp_path):
    trainer, model = fit(tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    trainer.test(model, toy_run.Data(0), ckpt_path=trainer.callbacks[0].best_path, verbose=False)
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    # the test's metric is one more column; all the rows before it are still there
    assert [line.rstrip(",") for line in after[1:-1]] == [line.rstrip(",") for line in rows[1:]]
    assert len(after) == len(rows) + 1


def test_every_checkpoint_says_where_it_stands(tmp_path):
    seen = {}

    class Spy(toy_run.Data):
        def train_dataloader(self):
            seen[self.trainer.ckpt_path] = training_position(self.trainer, BATCHES)
            return super().train_dataloader()

    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 16))
    for path in checkpoints_by_step(tmp_path / "checkpoints" / "last").values():
        trainer = toy_run.trainer(tmp_path)
        trainer.fit(toy_run.Toy(), Spy(0), ckpt_path=path)
    assert list(seen.values()) == [(2, 0), (2, 1)]


# ---------------------------------------------------------------- what is kept


def test_selection_and_rotation(tmp_path):
    trainer, _ = fit(tmp_path, every=5)
    with (tmp_path / "metrics.csv").open() as file:
        scores = [(float(r["val/acc"]), int(r["step"]) + 1) for r in csv.DictReader(file) if r["val/acc"]]
    best = max(score for score, _ in scores)
    first = min(step for score, step in scores if score == best)
    assert trainer.callbacks[0].best["step"] == first
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "best")) == [first]
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == [20, 21]
    for path in (tmp_path / "checkpoints").rglob("*.ckpt"):
        verify(path)


def test_a_trainer_that_would_save_otherwise_is_refused(tmp_path):
    toy_run.quiet()
    saving = RunCheckpoint(tmp_path)
    common = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.raises(SpecError, match="SafeCheckpointIO"):
        L.Trainer(callbacks=[saving], **common).fit(toy_run.Toy(), toy_run.Data(0))
    with pytest.raises(SpecError, match="first"):
        L.Trainer(
            callbacks=[Signals(), saving], plugins=[toy_run.SafeCheckpointIO()], **common
        ).fit(toy_run.Toy(), toy_run.Data(0))


# ---------------------------------------------------------------- non-finite numbers


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
        fit(tmp_path, StopAt("on_train_batch_start", 8))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")}
    quiet_model = toy_run.Toy()
    trainer = toy_run.trainer(tmp_path, Poison(8, where))
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


# ---------------------------------------------------------------- signals and kills


def start(folder, *words):
    script = Path(toy_run.__file__)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def rows_of(folder):
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("signum", "code", "words", "whole_group"),
    [
        (signal.SIGTERM, 143, ["every=100"], False),
        (signal.SIGINT, 130, ["every=100", "workers=1"], True),
        (signal.SIGTERM, 143, ["workers=1"], True),
    ],
)
def test_signal_saves_and_leaves_with_its_code(
    tmp_path, undisturbed, signum, code, words, whole_group
):
    process = start(tmp_path, "delay=0.1", *words)
    wait_for(lambda: rows_of(tmp_path) >= 4, process)
    send = os.killpg if whole_group else os.kill
    send(process.pid, signum)
    time.sleep(0.02)
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert signal.Signals(signum).name in err
    assert "digest" not in out
    # a SIGTERM to the whole group kills the workers too: then the last regular checkpoint stands
    trainer, model = fit(tmp_path, resume=True)
    assert 0 < len(model.seen) < 21
    assert digest(model) == undisturbed(every=5)[0]["weights"]
    assert (tmp_path / "metrics.csv").read_bytes() == undisturbed(every=5)[0]["metrics"]


def test_kill_nine_then_resume_is_bitwise(tmp_path, undisturbed):
    process = start(tmp_path, "delay=0.05", "every=2")
    wait_for(lambda: rows_of(tmp_path) >= 6, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    trainer, model = fit(tmp_path, resume=True, every=2)
    assert outcome(tmp_path, trainer, model) == undisturbed(every=2)[0]
    assert len(model.seen) < 15


class Send(L.Callback):
    """Sends this process a signal inside a hook."""

    def __init__(self, hook, signum):
        self.sent = False

        def send(*_, **__):
            if not self.sent:
                self.sent = True
                os.kill(os.getpid(), signum)

        setattr(self, hook, send)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("setup", None),
        ("on_sanity_check_start", None),
        ("on_train_start", None),
        ("on_train_batch_start", 1),
        ("on_validation_start", None),
        ("on_validation_batch_start", None),
        ("on_train_epoch_end", 7),
        ("on_save_checkpoint", 5),
        ("on_train_end", 21),
        ("teardown", 21),
    ],
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_in_any_phase_ends_with_its_code(tmp_path, hook, step, signum):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(Interrupted) as caught, Signals() as signals:
        fit(tmp_path, signals, Send(hook, signum))
    assert caught.value.code == 128 + signum
    assert {number: signal.getsignal(number) for number in before} == before
    if step:
        assert max(checkpoints_by_step(tmp_path / "checkpoints" / "last")) >= step


def test_without_the_context_manager_handlers_are_put_back(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(Interrupted):
        fit(tmp_path, Signals(), Send("on_train_epoch_end", signal.SIGTERM))
    fit(tmp_path / "other", Signals())
    assert {number: signal.getsignal(number) for number in before} == before
    assert max(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == 7
