"""metrics.csv: what was logged, in order, and the same bytes after a resume."""

import csv
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.errors import CheckpointError, QatError
from qat.lit.resume.csv_logger import RunCsvLogger

ROWS = [
    ({"epoch": 0, "train/loss": 0.1 + 0.2}, 1),
    ({"epoch": 0, "train/loss": 1e-30}, 3),
    ({"epoch": 0, "val/acc": 0.5}, 3),
    ({"epoch": 1, "quant/flip, rate": float("nan")}, 5),
    ({"train/loss": 2.0, "epoch": 1}, None),
]


def write(logger, rows):
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
        logger.save()


def text(folder):
    return (folder / "metrics.csv").read_text()


def test_wide_rows_in_the_order_of_logging(tmp_path):
    write(RunCsvLogger(tmp_path), ROWS)
    assert text(tmp_path) == (
        'step,epoch,train/loss,val/acc,"quant/flip, rate"\n'
        "1,0,0.30000000000000004,,\n"
        "3,0,1e-30,,\n"
        "3,0,,0.5,\n"
        "5,1,,,nan\n"
        ",1,2.0,,\n"
    )
    with (tmp_path / "metrics.csv").open() as file:
        assert float(next(csv.DictReader(file))["train/loss"]) == 0.1 + 0.2


def test_every_row_is_on_disk_at_once(tmp_path):
    logger = RunCsvLogger(tmp_path / "made" / "on demand")
    for count, (metrics, step) in enumerate(ROWS, start=1):
        logger.log_metrics(metrics, step)
        assert len(text(tmp_path / "made" / "on demand").splitlines()) == count + 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rewind_and_repeat_gives_the_same_bytes(tmp_path_factory, data):
    rows = data.draw(
        st.lists(
            st.tuples(
                st.dictionaries(st.sampled_from("abcd"), st.floats(), min_size=1), st.integers(0, 9)
            ),
            min_size=1,
            max_size=8,
        )
    )
    saved = data.draw(st.integers(0, len(rows)))
    lost = data.draw(st.integers(saved, len(rows)))
    straight, resumed = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    write(RunCsvLogger(straight), rows)
    first = RunCsvLogger(resumed)
    write(first, rows[:saved])
    position = first.position()
    before = text(resumed) if saved else None
    write(first, rows[saved:lost])
    second = RunCsvLogger(resumed)
    second.rewind(position)
    if saved:
        assert text(resumed) == before
    write(second, rows[saved:])
    assert text(resumed) == text(straight)


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    logger = RunCsvLogger(tmp_path)
    write(logger, ROWS[:2])
    position = logger.position()
    whole = text(tmp_path)
    (tmp_path / "metrics.csv").write_text(whole + "5,1,0.12")
    assert RunCsvLogger(tmp_path).position() == position
    RunCsvLogger(tmp_path).rewind(position)
    assert text(tmp_path) == whole


def test_an_existing_file_is_continued_and_never_wiped_unasked(tmp_path):
    write(RunCsvLogger(tmp_path), ROWS[:2])
    write(RunCsvLogger(tmp_path), ROWS[2:])
    other = tmp_path / "other"
    write(RunCsvLogger(other), ROWS)
    assert text(tmp_path) == text(other)
    logger = RunCsvLogger(tmp_path)
    logger.rewind()
    assert text(tmp_path) == "step,epoch\n"


def test_rewinding_nothing_makes_no_file(tmp_path):
    RunCsvLogger(tmp_path / "run").rewind()
    assert not (tmp_path / "run").exists()


def test_lost_rows_are_an_error(tmp_path):
    logger = RunCsvLogger(tmp_path)
    write(logger, ROWS)
    position = logger.position()
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(
        CheckpointError, match="holds 0 rows under 2 columns, the checkpoint knows 5"
    ):
        RunCsvLogger(tmp_path).rewind(position)


def test_hyper_parameters_are_not_stored(tmp_path):
    RunCsvLogger(tmp_path).log_hyperparams({"lr": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    logger = RunCsvLogger(tmp_path)
    write(logger, ROWS[:1])
    whole = text(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole), limits[1]))
    try:
        with pytest.raises(
            QatError, match=r"cannot write .*metrics\.csv: File too large"
        ) as caught:
            write(logger, ROWS[1:2])
        with pytest.raises(QatError, match="cannot write"):
            logger.log_metrics({"new column": 1.0}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert text(tmp_path) == whole


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(QatError, match=r"cannot write .*metrics\.csv: (Not a dir|File ex)"):
        RunCsvLogger(Path(tmp_path) / "run").log_metrics({"a": 1.0}, 0)
