"""What a run says of the time it takes: the estimate, the clock, the lines, and the bar."""

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import pytest

from qat.compose import checked, conf_folder
from qat.data.digits import Digits
from qat.train import progress
from qat.train.progress import Clock, Pace, Phase, RunLines, seconds_left, show_left
from qat.train.summary import judged_batches
from support import ROOT
from support.digits_run import fit, module
from support.real_run import SMALL, train


def spent(schedule):
    """Seconds of a run's events, written out one by one."""
    return sum(seconds for _, seconds in schedule)


@pytest.mark.parametrize("done", [1, 4, 5, 8, 11, 14, 20])
def test_a_run_of_even_pace_takes_what_is_said(done):
    """Two float epochs of 3 steps, five quantized ones, each evaluated; three states judged."""
    float_epoch = [("step", 2.0)] * 3 + [("evaluation", 1.0)]
    quantized_epoch = [("step", 5.0)] * 3 + [("evaluation", 4.0)]
    whole = 2 * float_epoch + 5 * quantized_epoch + [("evaluation", 4.0)] * 6
    steps = [i for i, (kind, _) in enumerate(whole) if kind == "step"]
    rest = whole[steps[done - 1] + 1 :]
    warm, hard = max(0, 6 - done), 15 - max(0, done - 6)
    phases = (
        Phase(steps=warm, epochs=-(-warm // 3), pace=Pace(2, 4.0, 1, 1.0)),
        Phase(steps=hard, epochs=-(-hard // 3), pace=Pace(2, 10.0, 1, 4.0)),
    )
    assert seconds_left(phases, judging=6, batches=9) == pytest.approx(spent(rest))


def test_what_was_not_timed_is_taken_from_what_was():
    phases = Phase(steps=6, epochs=2, pace=Pace(4, 8.0)), Phase(steps=9, epochs=3, pace=Pace())
    # 15 steps of 2 s; 5 + 4 evaluations of 9 batches, each a third of a step
    assert seconds_left(phases, judging=4, batches=9) == 15 * 2.0 + 9 * 9 * 2.0 / 3
    assert seconds_left([Phase(steps=6, epochs=2, pace=Pace())], judging=4, batches=9) is None


class FakeTime:
    now = 100.0

    def monotonic(self):
        return self.now


def test_the_clock_parts_steps_from_evaluations_and_the_phases(monkeypatch):
    monkeypatch.setattr(progress, "time", time := FakeTime())
    clock = Clock()
    clock.start(0)
    for epoch in range(4):
        time.now += 0.5  # the first batch is fetched
        clock.begin_epoch()
        for batch in range(3):
            is_first = batch == 0 and epoch in (0, 2)  # of a phase
            time.now += 50 if is_first else 1 if epoch < 2 else 3
            clock.end_step(epoch * 3 + batch + 1, is_quantized=epoch >= 2)
        time.now += 7
        clock.end_evaluation(ends_epoch=True)
    assert clock.paces[False] == Pace(5, 5.0, 2, 2 * 7.5)
    assert clock.paces[True] == Pace(5, 15.0, 2, 14.5)
    assert clock.elapsed() == time.now - 100


def test_epochs_without_validation_count_too(monkeypatch):
    monkeypatch.setattr(progress, "time", time := FakeTime())
    clock = Clock()
    clock.start(0)
    for epoch in range(4):
        time.now += 1
        clock.begin_epoch()
        clock.end_step(epoch + 1, is_quantized=True)
        if epoch % 2:
            time.now += 5
            clock.end_evaluation(ends_epoch=True)
    # of the epochs that are over
    assert clock.paces[True] == Pace(3, 0.0, 4, 3 * 1 + 2 * 5)


@pytest.mark.slow
def test_a_run_without_a_terminal_tells_its_time_within_ten_steps(tmp_path):
    printed = train(*SMALL, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    told = [line for line in printed.splitlines() if line.startswith(("step ", "epoch "))]
    number, time_ = r"[\d.]+", r"[\d.]+ (s|min|h)"
    assert re.fullmatch(rf"step 10 of 68: {number} s a step, about {time_} for the run", told[0])
    assert [line[:8] for line in told] == [
        "step 10 ", "epoch 1/", "step 27 ", "epoch 2/", "epoch 3/", "epoch 4/",
    ]  # fmt: skip
    assert re.fullmatch(rf"step 27 of 68: {number} s a step, about {time_} left", told[2])
    assert all(re.search(rf"  about {time_} left$", line) for line in told if line[0] == "e")


LIMITS = {
    "whole": ([], 6, 6 + 6),
    "numbers": (["trainer.limit_val_batches=2", "trainer.limit_test_batches=1"], 2, 2 + 1),
    "shares": (["trainer.limit_val_batches=0.5", "trainer.limit_test_batches=0.4"], 3, 3 + 2),
    "test": (["trainer.limit_test_batches=1"], 6, 6 + 1),
    # the judge has all of validation
    "overfit": (["+trainer.overfit_batches=2"], 2, 6 + 6),
    "no validation yet": (
        ["trainer.limit_val_batches=2", "trainer.check_val_every_n_epoch=3"],
        2,
        8,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_evaluations_count(name, tmp_path):
    """Parts of 359 images in batches of 64: six batches, unless there is a limit."""
    limits, validation, judged = LIMITS[name]
    spec = checked(conf_folder(), ["model=lenet5", "data.batch_size=64", *limits]).spec
    data = Digits(spec.data)
    assert judged_batches(data, spec) == judged
    options = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = L.Trainer(**spec.trainer | options)
    trainer.datamodule = data
    clock = Clock(judged=judged_batches(data, spec))
    clock.paces[True] = Pace(10, 20.0)
    module = SimpleNamespace(total_steps=120, warm_steps=0, monitor=None)
    # an epoch is 120 / max_epochs steps; before an evaluation, a batch is a third of a step
    evaluations = spec.trainer["max_epochs"] * validation + judged
    assert clock.left(trainer, module) == pytest.approx(120 * 2.0 + evaluations * 2.0 / 3)
    # once there was one, the judge's batches are as long as those in training
    clock.paces[True] = Pace(10, 20.0, 1, 30.0)
    evaluations = spec.trainer["max_epochs"] + judged / validation
    assert clock.left(trainer, module) == pytest.approx(120 * 2.0 + evaluations * 30.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_line_has_what_its_own_evaluation_logged(capsys):
    """BinaryRelax logs the accuracy of relaxed weights until they are hard."""
    logged = []

    class Logged(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            optimizer = pl_module.quant_optimizer
            is_relaxed = 0 < optimizer.theta < 1
            logged.append(["val/acc", *["val/acc_relaxed"] * is_relaxed, "val/loss"])

    fit(module("binary_relax", hard_from=0.5), RunLines(Clock()), Logged(), epochs=4,
        num_sanity_val_steps=0)  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [re.findall(r"val/\w+", line) for line in lines] == logged
    assert "val/acc_relaxed" in logged[0]
    assert "val/acc_relaxed" not in logged[-1]


def test_the_bar_says_what_is_left_of_the_run(monkeypatch):
    clock = Clock(judged=15, paces={False: Pace(), True: Pace(10, 600.0, 1, 60.0)})
    trainer = SimpleNamespace(
        progress_bar_callback=SimpleNamespace(get_metrics=lambda *_: {"val/acc": 0.5}),
        state=SimpleNamespace(fn="fit"), max_epochs=10, global_step=50, accumulate_grad_batches=1,
        datamodule=SimpleNamespace(parts=SimpleNamespace(validation=()), batches_of=lambda _: 5),
        limit_val_batches=1.0,
    )  # fmt: skip
    show_left(trainer, clock)
    module = SimpleNamespace(total_steps=100, warm_steps=0, monitor="val/acc")
    shown = trainer.progress_bar_callback.get_metrics(trainer, module)
    # 50 steps and 5 + 2 * 3 evaluations of a minute each
    assert shown == {"val/acc": 0.5, "left": "61.0 min"}
    trainer.state.fn = "test"
    assert trainer.progress_bar_callback.get_metrics(trainer, module) == {"val/acc": 0.5}


@pytest.mark.slow
def test_a_terminal_shows_it(tmp_path):
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=tmp_path, stdout=terminal, stderr=terminal,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "140", "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    printed = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        printed += part
    os.close(main)
    assert process.wait() == 0, printed
    assert re.search(rb"left[:=] ?[\d.]+ s", printed)
    assert b"step 10 of" not in printed
