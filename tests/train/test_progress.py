"""What a run says of the time it takes: the estimate, the clock, the lines, and the bar."""

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from qat.train import progress
from qat.train.progress import Clock, Pace, Phase, seconds_left, show_left
from support import ROOT
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


def test_the_bar_says_what_is_left_of_the_run(monkeypatch):
    clock = Clock(paces={False: Pace(), True: Pace(10, 600.0, 1, 60.0)})
    images = SimpleNamespace(validation=range(50), test=range(100))
    trainer = SimpleNamespace(
        progress_bar_callback=SimpleNamespace(get_metrics=lambda *_: {"val/acc": 0.5}),
        state=SimpleNamespace(fn="fit"), max_epochs=10, global_step=50, accumulate_grad_batches=1,
        datamodule=SimpleNamespace(parts=images, options=SimpleNamespace(batch_size=10)),
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
