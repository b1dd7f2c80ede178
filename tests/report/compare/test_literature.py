"""Published numbers: each with its source, drawn only where ours has the same bits."""

import pytest

from qat.report.compare.comparison import compare
from qat.report.compare.literature import Published, points_beside, published
from qat.report.runs.grouping import families_of
from qat.report.runs.runs import read_runs

FLOAT_ENDS = {"quant.ends.first": "float", "quant.ends.last": "float"}


def test_every_entry_has_a_source_and_is_there_once():
    entries = published()
    assert len(entries) > 50
    assert all(len(entry.source) > 5 for entry in entries)
    assert len(set(entries)) == len(entries)


def test_points_stand_at_what_ours_of_equal_bits_cost(make_run, tmp_path):
    make_run("a", seed=1, changes=FLOAT_ENDS)  # W1A4, 1000 bytes
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    own = {"data": "digits", "model": "lenet5", "source": "a paper", "method": "M"}
    known = [
        Published(**own, w=1, a=4, top1=90.0),
        Published(**own, w=2, a=2, top1=91.0),  # bits that we did not run
        Published(**{**own, "data": "cifar10"}, w=1, a=4, top1=92.0),
    ]
    found = points_beside(family, compare(family.groups), "bytes", known)
    assert [(p.label, p.cost, p.accuracy) for p in found] == [("M W1A4, ends unknown", 1000, 0.9)]
    assert found[0].source == "a paper"


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("quantized", "quantized", ["quantized"]),
        ("float", "float", ["float", "8 bits", "unknown"]),
        ("float", "quantized", []),
    ],
)
def test_ends_stand_beside_their_like(make_run, tmp_path, first, last, expected):
    make_run("a", changes={"quant.ends.first": first, "quant.ends.last": last})
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    own = {"data": "digits", "model": "lenet5", "source": "a paper", "method": "M"}
    known = [
        Published(**own, w=1, a=4, top1=90.0, ends=ends)
        for ends in ("quantized", "float", "8 bits", None)
    ]
    found = points_beside(family, compare(family.groups), "bytes", known)
    assert [p.label for p in found] == [f"M W1A4, ends {ends}" for ends in expected]


def test_a_share_of_the_test_images_has_nothing_published(make_run, tmp_path):
    make_run("a", changes={**FLOAT_ENDS, "trainer.limit_test_batches": 0.1})
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    own = {"data": "digits", "model": "lenet5", "source": "a paper", "method": "M"}
    known = [Published(**own, w=1, a=4, top1=90.0)]
    assert points_beside(family, compare(family.groups), "bytes", known) == []


def test_entries_say_no_more_than_their_sources():
    entries = {(e.method, e.w, e.a, e.source.partition(",")[0]): e for e in published()}
    assert not any(method == "XNOR-Net" for method, *_ in entries)
    lsq = entries["LSQ, reproduced", 3, 3, "github.com/hustzxd/LSQuantization"]
    assert (lsq.top1, lsq.ends) == (69.45, None)


def test_nothing_published_is_about_digits(make_run, tmp_path):
    make_run("a", seed=1)
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    assert points_beside(family, compare(family.groups), "bytes") == []
    assert pytest.approx(64.36) == published()[0].top1
