"""Run folders for tests of reports."""

from functools import partial

import pytest

from support.run_folders import write_run


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run folder below tmp_path / "runs" and returns its path."""
    return partial(write_run, tmp_path / "runs")
