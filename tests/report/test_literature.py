"""Published numbers: each with its source, drawn only where ours has the same bits."""

import pytest

from qat.report.comparison import compare
from qat.report.grouping import families_of
from qat.report.literature import Published, points_beside, published
from qat.report.runs import read_runs


def test_every_entry_has_a_source_and_is_there_once():
    entries = published()
    assert len(entries) > 50
    assert all(len(entry.source) > 5 for entry in entries)
    assert len(set(entries)) == len(entries)


def test_points_stand_at_what_ours_of_equal_bits_cost(make_run, tmp_path):
    make_run("a", seed=1)  # W1A4, 1000 bytes
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    own = {"data": "digits", "model": "lenet5", "source": "a paper", "method": "M"}
    known = [
        Published(**own, w=1, a=4, top1=90.0),
        Published(**own, w=2, a=2, top1=91.0),  # bits that we did not run
        Published(**{**own, "data": "cifar10"}, w=1, a=4, top1=92.0),
    ]
    found = points_beside(family, compare(family.groups), "bytes", known)
    assert [(p.label, p.cost, p.accuracy) for p in found] == [("M W1A4", 1000, 0.9)]
    assert found[0].source == "a paper"


def test_nothing_published_is_about_digits(make_run, tmp_path):
    make_run("a", seed=1)
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    assert points_beside(family, compare(family.groups), "bytes") == []
    assert pytest.approx(64.36) == published()[0].top1
