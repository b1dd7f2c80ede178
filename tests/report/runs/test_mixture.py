"""What a family mixes is told, and nothing is told of a family that mixes nothing."""

import os

import pytest

from qat.report.runs.grouping import families_of
from qat.report.runs.origins import warnings_of
from qat.report.runs.runs import read_runs

SAME = {"code": {"sources": "s1"}, "threads": 1, "versions": {"torch": "2.15.0"}}


@pytest.fixture
def warnings(tmp_path):
    def found(**options):
        (family,) = families_of(read_runs([tmp_path / "runs"]), **options)
        return warnings_of(family.groups)

    return found


def test_equal_runs_are_no_mixture(make_run, warnings):
    make_run("a", **SAME)
    make_run("b", quant="float", **SAME)
    assert warnings() == []


def test_runs_that_tell_nothing_are_no_mixture(make_run, warnings):
    make_run("a")
    make_run("b", quant="float")
    assert warnings() == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"code": {"sources": "s2"}}, "2 versions of the code: s1 (2 runs), s2 (1 runs)"),
        ({"code": None}, "2 versions of the code: s1 (2 runs), unknown (1 runs)"),
        ({"threads": 4}, "2 thread counts: 1 (2 runs), 4 (1 runs)"),
        ({"versions": {"torch": "2.16"}}, "2 versions of torch: 2.15.0 (2 runs), 2.16 (1 runs)"),
    ],
)
def test_each_mixture_is_a_sentence(make_run, warnings, other, words):
    make_run("a", **SAME)
    make_run("b", seed=2, **SAME)
    make_run("c", quant="float", **(SAME | other))
    (warning,) = warnings()
    assert words in warning


def test_what_was_tuned_against_counts_too(make_run, warnings):
    make_run("a", val=0.9, changes={"optimizer.lr": 0.1}, **SAME)
    make_run("b", val=0.5, changes={"optimizer.lr": 0.2}, **(SAME | {"threads": 2}))
    (warning,) = warnings(tuned_key="optimizer.lr")
    assert "2 thread counts" in warning


def test_a_seed_that_is_there_twice_is_told_and_what_it_replaced_is_not(make_run, warnings):
    for name, threads, when in (("old", 1, 1000), ("new", 2, 2000)):
        folder = make_run(name, seed=3, threads=threads)
        os.utime(folder / "summary.json", (when, when))
    (warning,) = warnings()
    assert "same config and seed: bcgd_w1a4 seed 3. Of each" in warning


def test_long_lists_are_cut(make_run, warnings):
    for seed in range(20):
        make_run(f"a{seed}", seed=seed, code={"sources": f"s{seed}"}, threads=1)
    (warning,) = warnings()
    assert "20 versions of the code" in warning
    assert "and 12 more" in warning
