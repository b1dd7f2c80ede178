"""Run folders as they come: whole, damaged, hostile, doubled."""

import json
import os

import pytest

from qat.errors import CheckpointError
from qat.report.runs.runs import finite, read_run, read_runs
from qat.storage.run_files import flattened


def test_a_run_is_what_its_files_say(make_run, tmp_path):
    folder = make_run("a", seed=3, test=0.875, overrides=["+optimizer.lr=0.5", "~logger"])
    (run,) = read_runs([tmp_path / "runs"])
    assert (run.name, run.state, run.error, run.seed) == ("runs/a", "finished", None, 3)
    assert run.folder == folder.resolve()
    assert run.is_finished
    assert run.config["quant.rule.rho"] == 1e-05
    assert run.config["logger"] is None
    assert run.choices == {"quant": "bcgd_w1a4"}
    assert run.changed == {"quant", "seed", "optimizer.lr", "logger"}
    assert run.number("last", "test_acc") == 0.875
    assert run.number("last", "test_acc", "deeper") is None
    assert run.number("nothing") is None
    assert run.rows()[1]["val/acc"] == "0.75"
    assert run.rows("layers.csv") == []


def test_hydra_tells_the_files_that_no_override_names(make_run):
    folder = make_run("a")
    choices = {"hydra": {"runtime": {"choices": {"optimizer": "adamw", "debug": None}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    assert read_run(folder).choices == {"optimizer": "adamw", "quant": "bcgd_w1a4"}


def test_each_run_is_read_once_however_it_is_reached(make_run, tmp_path):
    one, two = make_run("x/one"), make_run("x/two")
    (tmp_path / "link").symlink_to(one)
    (one / "report" / ".hydra").mkdir(parents=True)  # nothing inside of a run is another run
    (one / "report" / "status.json").write_text("{}")
    found = read_runs([tmp_path / "link", tmp_path / "runs", one, two])
    assert [run.name for run in found] == ["one", "runs/x/two"]
    assert read_runs([tmp_path / "nowhere"]) == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (".hydra/config.yaml", b"a: [", "config.yaml cannot be read"),
        (".hydra/config.yaml", b"- 1", "config.yaml holds no keys and values"),
        (".hydra/config.yaml", b"\xff\xfe\x00", "config.yaml cannot be read"),
        (".hydra/config.yaml", b"a: !!python/object/apply:os.abort []", "config.yaml cannot"),
        (".hydra/config.yaml", None, "config.yaml is missing"),
        (".hydra/overrides.yaml", b"{", "overrides.yaml cannot be read"),
        ("status.json", b"", "status.json cannot be read"),
        ("status.json", b"[" * 100_000, "status.json cannot be read"),
        ("status.json", None, "status.json is missing"),
        ("summary.json", b"{", "summary.json cannot be read"),
        ("summary.json", b"[]", "summary.json holds no keys and values"),
        ("summary.json", b"\xff", "summary.json cannot be read"),
        ("summary.json", None, "summary.json is missing"),
    ],
)
def test_a_damaged_file_is_a_reason(make_run, file, content, reason):
    folder = make_run("a")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    run = read_run(folder)
    assert run.state == "unreadable"
    assert reason in run.error
    assert "\n" not in run.error
    assert not run.is_finished


@pytest.mark.parametrize("kind", ["[{0}, {0}]", "{{p: {0}, q: {0}}}"])
def test_a_file_that_unfolds_without_end_is_refused(make_run, kind):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} {kind.format(f'*a{i - 1}')}" for i in range(1, 29)]
    folder = make_run("a")
    (folder / ".hydra" / "config.yaml").write_text("\n".join(lines))
    assert "10000 values" in read_run(folder).error


@pytest.mark.parametrize("file", ["overrides.yaml", "hydra.yaml"])
def test_aliases_of_the_command_are_not_unfolded(make_run, file):
    lines = ["- &a0 [x, x]"]
    lines += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "\n".join(lines)
    folder = make_run("a")
    if file == "hydra.yaml":
        text = "hydra: {runtime: {choices: {quant: *b}}}"
        text = "\n".join(["b:", *(f"  {line}" for line in lines[:-1]), f"  - &b {lines[-1][6:]}"])
        text += "\nhydra: {runtime: {choices: {quant: *b}}}"
    (folder / ".hydra" / file).write_text(text)
    run = read_run(folder)
    assert f"{file} holds more than 10000 values" in run.error
    assert not run.is_finished


@pytest.mark.parametrize(
    "file",
    [
        *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"),
        *("status.json", "summary.json"),
    ],
)
def test_a_pipe_is_no_file_to_wait_for(make_run, file):
    folder = make_run("a")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    (run,) = read_runs([folder])
    assert run.error == f"{file.rpartition('/')[2]} cannot be read: it is no regular file"
    assert not run.is_finished


def test_a_table_that_is_a_pipe_has_no_rows(make_run):
    folder = make_run("a")
    (folder / "metrics.csv").unlink()
    os.mkfifo(folder / "metrics.csv")
    assert read_run(folder).rows() == []


def test_a_config_that_holds_itself_is_refused(make_run):
    folder = make_run("a")
    (folder / ".hydra" / "config.yaml").write_text("a: &a {b: *a}")
    assert "30 levels" in read_run(folder).error


def test_a_deep_config_is_refused():
    deep = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="30 levels"):
        flattened(deep)


def test_a_failed_run_keeps_its_error_in_one_line(make_run):
    run = read_run(make_run("a", state="failed", error="step 4:\nthe loss is nan"))
    assert (run.state, run.error) == ("failed", "step 4: the loss is nan")
    assert not run.is_finished
    assert run.summary is None


@pytest.mark.parametrize(
    "content",
    [b"", b"step,epoch\n1", b"step\n1,2,3\n", b"\xff\xfe", b'step,a\n"', b"a\n" + b"x" * 200_000],
)
def test_a_damaged_table_gives_rows_of_text(make_run, content):
    folder = make_run("a")
    (folder / "metrics.csv").write_bytes(content)
    for row in read_run(folder).rows():
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in row.items())


def test_numbers_are_finite_floats_only():
    assert [finite(v) for v in (1, 0.5, "2e-3", "-1")] == [1.0, 0.5, 0.002, -1.0]
    strange = (None, True, [], {}, "", "x", "nan", "inf", float("nan"), float("-inf"), 10**400)
    assert {finite(value) for value in strange} == {None}
