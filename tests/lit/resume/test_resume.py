"""Resume is bitwise, from any step: weights, metrics.csv, selection, what is seen and validated."""

import csv
import shutil

import lightning as L
import pytest

from qat.errors import CheckpointError, SpecError
from qat.lit.resume.checkpoint_io import (
    checkpoint_name,
    checkpoints_by_step,
    last_good,
    load,
    save,
    verify,
)
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.lit.resume.signals import Signals
from support import toy_run
from support.products import mostly_slow
from support.toy_run import BATCHES, StopAt, digest, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def outcome(folder, trainer, model):
    """Everything that an interruption must not change."""
    best = trainer.callbacks[0].best
    file = folder / "checkpoints" / best["path"] if best else None
    return {
        "weights": digest(model),
        "metrics": (folder / "metrics.csv").read_bytes(),
        "best": best,
        "best weights": file and digest_of(load(file)["state_dict"]),
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
@pytest.mark.parametrize("step", mostly_slow([1, 2, 6, 7, 8, 13, 14, 15, 20], day=(0, 3, 7)))
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
        ("on_train_epoch_start", 14, 10),
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
    mostly_slow(
        [
            ({"accumulate_grad_batches": 2, "every": 1}, [1, 3, 4, 5, 11]),
            ({"max_epochs": -1, "max_steps": 17, "every": 1}, [3, 7, 8, 14]),
            ({"max_epochs": -1, "max_steps": 17, "limit_val_batches": 0, "every": 1}, [7, 8]),
            ({"val_check_interval": 3, "every": 1}, [3, 4, 7, 10]),
            ({"check_val_every_n_epoch": 2, "every": 1}, [7, 14, 16]),
            ({"limit_train_batches": 4, "every": 1}, [3, 4, 5]),
            ({"workers": 1, "every": 1}, [2, 7, 10]),
        ],
        day=(0,),
    ),
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
    want, _, _ = undisturbed(every=5, keep=2)
    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 16), every=5, keep=2)
    last = checkpoints_by_step(tmp_path / "checkpoints" / "last")
    assert list(last) == [10, 15]
    for step in [15, 10][:damaged]:
        last[step].write_bytes(last[step].read_bytes()[:-100])
    # left by a later part of the run; it must not crowd out the good ones
    (last[15].parent / checkpoint_name(99)).write_bytes(b"")
    if damaged == 2:
        with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged"):
            last_good(last[15].parent)
        return
    trainer, model = fit(tmp_path, resume=True, every=5, keep=2)
    assert "step=00000099.ckpt is empty" in caplog.text
    assert "step=00000015.ckpt is cut short" in caplog.text
    assert outcome(tmp_path, trainer, model) == want


def test_a_folder_with_two_states_goes_on_and_keeps_one(tmp_path, undisturbed):
    """As versions before left it."""
    want, _, _ = undisturbed(every=5)
    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 16), every=5, keep=2)
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == [10, 15]
    assert outcome(tmp_path, *fit(tmp_path, resume=True, every=5)) == want
    assert want["files"] == [21]


def test_a_checkpoint_is_read_once_by_the_trainer_that_is_handed_it(tmp_path):
    path = tmp_path / "a.ckpt"
    save({"x": 1}, path)
    reader = toy_run.SafeCheckpointIO((path, {"x": 2}))
    assert reader.load_checkpoint(path) == {"x": 2}
    assert reader.load_checkpoint(path) == {"x": 1}  # handed out once
    other = toy_run.SafeCheckpointIO((tmp_path / "b.ckpt", {"x": 2}))
    assert other.load_checkpoint(path) == {"x": 1}


def test_testing_with_older_weights_leaves_the_run_alone(tmp_path):
    trainer, model = fit(tmp_path, keep=2)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    older = tmp_path / "checkpoints" / "last" / checkpoint_name(20)
    trainer.test(model, toy_run.Data(0), ckpt_path=older, verbose=False)
    assert trainer.callbacks[0].best["step"] == 21
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    # the test's metric is one more column; all the rows before it are still there
    assert [line.rstrip(",") for line in after[1:-1]] == [line.rstrip(",") for line in rows[1:]]
    assert len(after) == len(rows) + 1


# ---------------------------------------------------------------- what is kept


def test_selection_and_rotation(tmp_path):
    trainer, _ = fit(tmp_path, every=5)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/acc"]]
    scores = [(float(row["val/acc"]), int(row["step"]) + 1) for row in rows]
    best = max(score for score, _ in scores)
    first = min(step for score, step in scores if score == best)
    assert trainer.callbacks[0].best["step"] == first
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "best")) == [first]
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == [21]
    for path in (tmp_path / "checkpoints").rglob("*.ckpt"):
        verify(path)


def test_selected_weights_wait_for_the_checkpoint_that_names_them(tmp_path):
    best = tmp_path / "checkpoints" / "best"

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            saved = trainer.callbacks[0]
            files, last = checkpoints_by_step(best), last_good(tmp_path / "checkpoints" / "last")
            named = load(last)["qat_run"]["best"] if last else None
            assert list(files) == ([named["step"]] if named else []), trainer.global_step
            seen.append((saved.best or {}).get("step") != (named or {}).get("step"))

    seen = []
    fit(tmp_path, Look(), every=5)
    assert any(seen)  # some did wait
    assert set(load(*best.iterdir())) == {
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "qat_run",
    }  # fmt: skip


def test_a_kill_after_any_move_of_a_save_is_bitwise(tmp_path, undisturbed, monkeypatch):
    """What a kill finds on disk: a sound file of either kind, and one too many at most."""
    want, _, _ = undisturbed(every=5)
    folder, found = tmp_path / "run", {}

    def then_copy(move):
        def call(*arguments):
            move(*arguments)
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.ckpt")]
            copy = tmp_path / f"killed {len(found)}"
            if found.setdefault(tuple(sorted(files)), copy) == copy:
                shutil.copytree(folder, copy)

        return call

    for move in ("_write_best", "_clean_best", "_write", "_clean_last"):
        monkeypatch.setattr(RunCheckpoint, move, then_copy(getattr(RunCheckpoint, move)))
    fit(folder, every=5)
    monkeypatch.undo()
    was_gone = 0
    for files, copy in found.items():
        last = last_good(copy / "checkpoints" / "last")
        named = load(last)["qat_run"]["best"] if last else None
        was_gone += bool(named) and not (copy / "checkpoints" / named["path"]).exists()
        assert len(files) <= 1 + bool(last) + bool(named), files
        got = outcome(copy, *fit(copy, resume=last is not None, every=5))
        # the one before the last, which nothing in a fit that is over deletes: `run_job` does
        assert got | {"files": got["files"][-1:]} == want, files
    assert was_gone  # the kill in the middle of a save that replaces the selected epoch


def test_a_run_that_fails_leaves_its_selected_weights(tmp_path):
    with pytest.raises(InterruptedError):
        fit(tmp_path, StopAt("on_train_batch_start", 9), every=100)
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "best")) == [7]
    assert last_good(tmp_path / "checkpoints" / "last") is None


def test_waiting_weights_keep_the_name_of_their_epoch(tmp_path):
    """A failure comes when the next epoch is selected and its weights are not yet taken."""

    class Fail(L.Callback):
        def on_validation_end(self, trainer, _):
            saved = trainer.callbacks[0]
            if saved._waiting is not None and saved.best_path != saved._waiting[0]:
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path, Fail(), every=100)
    ((step, path),) = checkpoints_by_step(tmp_path / "checkpoints" / "best").items()
    assert load(path)["global_step"] == step


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
