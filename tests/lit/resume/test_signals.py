"""Signals and kills: the exit code, the save, and a bitwise resume."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import pytest

from qat.errors import NonFiniteError
from qat.lit.resume.checkpoint_io import checkpoints_by_step
from qat.lit.resume.signals import Interrupted, Signals
from support import ROOT, toy_run
from support.toy_run import digest, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


def start(folder, *words):
    script = Path(toy_run.__file__)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
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


# name: signal, exit code, whole process group, options of the run
CASES = {
    "SIGTERM": (signal.SIGTERM, 143, False, ["every=100"]),
    "SIGINT to the group": (signal.SIGINT, 130, True, ["every=100", "workers=1"]),
    "SIGTERM to the group": (signal.SIGTERM, 143, True, ["every=100", "workers=1"]),
    "SIGKILL": (signal.SIGKILL, -9, False, ["every=2"]),
}


def stop(folder, signum, whole_group, words):
    """Run the toy in a process of its own, stop it in the middle."""
    process = start(folder, "delay=0.1", *words)
    wait_for(lambda: rows_of(folder) >= 4, process)
    send = os.killpg if whole_group else os.kill
    send(process.pid, signum)
    if not whole_group:  # an impatient sender; it must not break the save
        time.sleep(0.02)
        os.kill(process.pid, signum)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Folder, exit code, stdout and stderr of each case; they run side by side."""

    # made here: pytest's factory is not for several threads
    folders = {case: tmp_path_factory.mktemp(case.replace(" ", "-")) for case in CASES}

    def run(case):
        signum, _, whole_group, words = CASES[case]
        return folders[case], *stop(folders[case], signum, whole_group, words)

    with ThreadPoolExecutor() as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    _, model = fit(folder)
    return digest(model), (folder / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_process_leaves_with_its_code_and_resumes_bitwise(stopped, undisturbed, case):
    signum, code, _, _ = CASES[case]
    folder, returned, out, err = stopped[case]
    assert returned == code, err
    assert "Traceback" not in err
    assert "digest" not in out
    if code > 0:
        step = max(checkpoints_by_step(folder / "checkpoints" / "last"))
        assert f"{signum.name}: stopped after step {step}" in err
        assert rows_of(folder) - 1 >= step // 2
    _, model = fit(folder, resume=True)
    assert 0 < len(model.seen) < 20
    assert (digest(model), (folder / "metrics.csv").read_bytes()) == undisturbed


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


def test_a_failure_caused_by_the_signal_keeps_the_exit_code(tmp_path):
    closed = []

    class Fail(L.Callback):
        def on_validation_batch_start(self, trainer, module, *_):
            if trainer.sanity_checking:
                return
            module.teardown = closed.append
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(Interrupted) as caught, Signals() as signals:
        fit(tmp_path, signals, Fail())
    assert caught.value.code == 143
    assert closed  # an evaluation left open would abort at the interpreter's end
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_signal_between_accumulated_batches_waits_for_the_step(tmp_path):
    options = {"accumulate_grad_batches": 2, "every": 100}
    _, straight = fit(tmp_path / "straight", **options)
    with pytest.raises(Interrupted):
        fit(tmp_path, Signals(), Send("on_train_batch_end", signal.SIGTERM), **options)
    assert list(checkpoints_by_step(tmp_path / "checkpoints" / "last")) == [1]
    _, model = fit(tmp_path, resume=True, **options)
    assert digest(model) == digest(straight)


def test_a_forked_worker_leaves_the_signal_to_its_parent():
    with Signals():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_non_finite_loss_is_told_even_after_a_signal(tmp_path):
    class Fail(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            os.kill(os.getpid(), signal.SIGTERM)
            module.last_loss = module.last_loss * float("nan")

    with pytest.raises(NonFiniteError, match="loss is nan"), Signals() as signals:
        fit(tmp_path, signals, Fail())
