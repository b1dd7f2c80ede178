"""status.json: what it holds, and that a damaged one is nobody's end."""

import errno
import json
import os
import signal

import pytest

from qat.errors import QatError
from qat.storage.lock import only_process
from qat.storage.status import Status, mark, read_status, state_of


def test_it_holds_what_a_sweep_needs(tmp_path):
    status = Status(tmp_path, "abc")
    status.write("finished", metrics={"last": {"val_acc": 0.5}})
    content = json.loads((tmp_path / "status.json").read_text())
    assert content["state"] == "finished"
    assert content["config_hash"] == "abc"
    assert set(content["code"]) == {"version", "commit", "sources"}
    assert content["metrics"]["last"]["val_acc"] == 0.5


def test_another_may_mark_what_has_not_finished_and_is_nobody_s(tmp_path):
    status = Status(tmp_path, "abc")
    status.write("running")
    before = read_status(tmp_path)
    with only_process(tmp_path):
        mark(tmp_path, "interrupted", "killed by signal 9")
    assert read_status(tmp_path) == before
    mark(tmp_path, "interrupted", "killed by signal 9")
    ended = {"state": "interrupted", "error": "killed by signal 9"}
    assert read_status(tmp_path) == before | ended
    status.write("finished", metrics={})
    (tmp_path / "summary.json").write_text("{}")
    mark(tmp_path, "interrupted", "killed by signal 9")
    assert state_of(tmp_path) == "finished"


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(143), "interrupted", "143"),
        (QatError("the loss is not finite"), "failed", "not finite"),
        (ZeroDivisionError("x"), "failed", "ZeroDivisionError: x"),
    ],
)
def test_how_a_run_ended_is_told(tmp_path, error, state, told):
    status = Status(tmp_path, "abc")
    with pytest.raises(type(error)), status.recording_failures():
        raise error
    assert state_of(tmp_path) == state
    assert told in read_status(tmp_path)["error"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"seconds": null}', '{"seconds": "x"}', "3"])
def test_a_damaged_file_counts_as_none(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    assert state_of(tmp_path) is None
    status = Status(tmp_path, "abc")
    assert 0 <= status.seconds() < 60
    status.write("running")
    assert state_of(tmp_path) == "running"


def test_time_and_threads_of_an_interrupted_run_are_kept(tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"seconds": 100, "threads": 3}))
    status = Status(tmp_path, "abc")
    assert status.seconds() >= 100
    status.write("interrupted")
    assert read_status(tmp_path)["threads"] == 3


@pytest.mark.parametrize("marked", [False, True])
def test_a_killed_run_has_the_time_until_its_last_line_of_metrics(tmp_path, marked):
    status, metrics = tmp_path / "status.json", tmp_path / "metrics.csv"
    status.write_text(json.dumps({"state": "running", "seconds": 10}))
    os.utime(status, (1000, 1000))
    assert 10 <= Status(tmp_path, "abc").seconds() < 20
    metrics.write_text("epoch\n")
    os.utime(metrics, (1100, 1100))
    if marked:
        mark(tmp_path, "interrupted", "killed by signal 9")
        assert read_status(tmp_path)["seconds"] == 110
    assert 110 <= Status(tmp_path, "abc").seconds() < 120
    # lines of an earlier part only: killed before it wrote any
    status.write_text(json.dumps({"state": "running", "seconds": 10}))
    os.utime(metrics, (1000, 1000))
    assert 10 <= Status(tmp_path, "abc").seconds() < 20


def test_a_folder_that_cannot_be_written_to_leaves_nothing_behind(tmp_path):
    (tmp_path / "status.json").mkdir()  # stands where the file should be
    Status(tmp_path, "abc").write("running")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("state", ["failed", "interrupted", "finished"])
def test_a_full_disk_still_holds_the_end(tmp_path, monkeypatch, state):
    status = Status(tmp_path, "abc")
    status.write("running")
    monkeypatch.setattr("qat.storage.status.write_whole", full)
    status.write(state, error="x" * 1000, metrics={"last": {"val_acc": 0.5}})
    assert state_of(tmp_path) == state
    assert read_status(tmp_path)["error"] == "x" * 1000
    status.write("interrupted")  # a shorter one leaves nothing of the longer
    assert read_status(tmp_path)["error"] is None


def test_a_run_that_cannot_say_that_it_is_finished_has_not(tmp_path, monkeypatch):
    status = Status(tmp_path, "abc")
    status.write("running")
    monkeypatch.setattr("qat.storage.status.write_whole", full)
    metrics = {"last": {f"metric {number}": 0.5 for number in range(1000)}}  # more than was there
    with pytest.raises(OSError, match="No space"):
        status.write("finished", metrics=metrics)
    status.write("failed", error="x" * 10_000)  # its own error is the one that is told
    assert state_of(tmp_path) == "running"


def test_a_signal_waits_until_the_state_is_written(tmp_path, monkeypatch):
    # pytest may run in the background, where a shell has Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def slowly(path, content):
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("written")

    monkeypatch.setattr("qat.storage.status.write_whole", slowly)
    try:
        with pytest.raises(KeyboardInterrupt):
            Status(tmp_path, "abc").write("failed")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["written"]
