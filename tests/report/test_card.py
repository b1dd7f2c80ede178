"""A card from runs: every number from their own summaries, no path of the machine."""

import statistics

import pytest

from qat.errors import DataError
from qat.report.card import card_of
from qat.report.grouping import families_of
from qat.report.runs import read_runs

CODE = {"version": "1", "commit": "abc", "sources": "s1"}
TEST = (0.90, 0.93, 0.91)


def card(tmp_path, **options):
    (family,) = families_of(read_runs([tmp_path / "runs"]), tuned_key=options.get("tuned_key"))
    return card_of(family, **options)


def test_a_card_holds_what_the_runs_say(make_run, tmp_path):
    for seed, test in enumerate(TEST, start=1):
        make_run(
            f"q{seed}", seed=seed, test=test, code=CODE, threads=1, overrides=["data.root=/a/b"]
        )
        make_run(f"f{seed}", seed=seed, quant="float", test=0.95, code=CODE, threads=1)
    found = card(tmp_path)
    assert found["reference"] == "float"
    assert found["code"] == CODE
    assert found["runs"] == 6
    row = next(row for row in found["rows"] if row["label"] == "bcgd_w1a4")
    assert row["seeds"] == [1, 2, 3]
    assert row["last"]["test"]["values"] == list(TEST)
    assert row["last"]["test"]["mean"] == pytest.approx(statistics.fmean(TEST), abs=1e-6)
    assert row["last"]["test"]["sd"] == pytest.approx(statistics.stdev(TEST), abs=1e-6)
    gaps = [test - 0.95 for test in TEST]
    assert row["last"]["difference"]["mean"] == pytest.approx(statistics.fmean(gaps), abs=1e-6)
    assert row["command"] == "python train.py -m quant=bcgd_w1a4 seed=1,2,3"
    assert row["cost"]["bytes"] == 1000


def test_paths_of_the_machine_stay_out(make_run, tmp_path):
    make_run("q", overrides=["init_from=/home/me/runs/a", "data.root=/data", "hydra.run.dir=/x"])
    assert card(tmp_path, commit="c")["rows"][0]["command"].count("/") == 0


def test_runs_of_different_code_make_no_card(make_run, tmp_path):
    make_run("a", seed=1, code=CODE)
    make_run("b", seed=2, code=CODE | {"sources": "s2"})
    with pytest.raises(DataError, match="different code"):
        card(tmp_path)


def test_the_tuned_key_is_told_with_the_number_of_values(make_run, tmp_path):
    for index, lr in enumerate((0.01, 0.1)):
        make_run(f"a{index}", val=0.5 + index / 10, changes={"optimizer.lr": lr}, code=CODE)
    (row,) = card(tmp_path, tuned_key="optimizer.lr")["rows"]
    assert row["tuned"] == {"optimizer.lr": 0.1, "tried": 2}
