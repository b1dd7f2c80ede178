"""One process at a time in a folder, however the other one ends."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from qat.errors import QatError
from qat.storage.lock import only_process
from support import ROOT

HOLD = """
import sys, time
from pathlib import Path
from qat.storage.lock import only_process
with only_process(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_folder_s_name(holder, tmp_path):
    with pytest.raises(QatError, match=f"{tmp_path} is in use"), only_process(tmp_path):
        pytest.fail("two at a time")
    with only_process(tmp_path, name="another"):
        pass


def test_it_waits_and_enters_once_the_other_was_killed(holder, tmp_path):
    told = []

    def waiting():
        told.append(time.monotonic())
        holder.kill()

    with only_process(tmp_path, wait=30, waiting=waiting):
        assert len(told) == 1


def test_it_gives_up_after_the_time(holder, tmp_path):
    start = time.monotonic()
    with pytest.raises(QatError), only_process(tmp_path, wait=0.5):
        pytest.fail("two at a time")
    assert 0.5 <= time.monotonic() - start < 10


def test_the_lock_ends_with_the_block(tmp_path):
    for _ in range(2):
        with only_process(tmp_path):
            pass
    with pytest.raises(KeyError), only_process(tmp_path):
        raise KeyError
    with only_process(tmp_path):
        pass


# as a run with loader workers: they live on for seconds after their parent was killed
FORK = """
import os, sys, time
from pathlib import Path
from qat.storage.lock import only_process
with only_process(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # what filelock does after a fork is done by now
    time.sleep(60)
"""


def test_children_that_it_forked_do_not_hold_the_lock_of_a_killed_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    child = int(process.stdout.readline())
    try:
        with pytest.raises(QatError), only_process(tmp_path):
            pytest.fail("the parent lives")
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with only_process(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), only_process(tmp_path / "nowhere"):
        pytest.fail("no folder")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(OSError, match="not implemented"), only_process(tmp_path):
        pytest.fail("no lock")
