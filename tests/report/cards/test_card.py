"""A card from runs: every number from their own summaries, no path of the machine."""

import statistics

import pytest

from qat.errors import DataError, SpecError
from qat.report.cards.card import card_of
from qat.report.runs.grouping import families_of
from qat.report.runs.runs import read_runs

CODE = {"version": "1", "commit": "abc", "sources": "s1"}
MACHINE = {"processor": "x", "cores": 2}
TEST = (0.90, 0.93, 0.91)


def card(tmp_path, **options):
    (family,) = families_of(read_runs([tmp_path / "runs"]), tuned_key=options.get("tuned_key"))
    return card_of(family, **options)


def test_a_card_holds_what_the_runs_say(make_run, tmp_path):
    for seed, test in enumerate(TEST, start=1):
        own = {"code": CODE, "machine": MACHINE, "threads": 1}
        make_run(f"q{seed}", seed=seed, test=test, overrides=["data.root=/a/b"], **own)
        make_run(f"f{seed}", seed=seed, quant="float", test=0.95, **own)
    found = card(tmp_path)
    assert found["reference"] == "float"
    (origin,) = found["origins"]
    assert origin["code"] == CODE
    assert origin["machine"] == MACHINE
    assert sorted(origin["rows"]) == ["bcgd_w1a4", "float"]
    assert found["runs"] == 6
    row = next(row for row in found["rows"] if row["label"] == "bcgd_w1a4")
    assert row["seeds"] == [1, 2, 3]
    assert row["last"]["test"]["values"] == list(TEST)
    assert row["last"]["test"]["mean"] == pytest.approx(statistics.fmean(TEST), abs=1e-6)
    assert row["last"]["test"]["sd"] == pytest.approx(statistics.stdev(TEST), abs=1e-6)
    gaps = [test - 0.95 for test in TEST]
    assert row["last"]["difference"]["mean"] == pytest.approx(statistics.fmean(gaps), abs=1e-6)
    assert row["commands"] == ["python train.py -m quant=bcgd_w1a4 seed=1,2,3"]
    assert row["cost"]["bytes"] == 1000


def test_the_order_of_words_makes_no_other_command(make_run, tmp_path):
    words = ["model=resnet20", "trainer.max_epochs=2"]
    for seed in (1, 2, 3):
        make_run(f"q{seed}", seed=seed, overrides=words if seed < 3 else words[::-1])
    (row,) = card(tmp_path, commit="0123456")["rows"]
    (line,) = row["commands"]
    assert line.startswith("python train.py -m ")
    assert line.endswith(" model=resnet20 trainer.max_epochs=2 seed=1,2,3")


def test_paths_of_the_machine_stay_out(make_run, tmp_path):
    make_run("q", overrides=["init_from=/home/me/runs/a", "data.root=/data", "hydra.run.dir=/x"])
    (line,) = card(tmp_path, commit="0123456")["rows"][0]["commands"]
    assert line == "python train.py quant=bcgd_w1a4 seed=1 init_from=a"


@pytest.mark.parametrize(
    "other", [{"code": CODE | {"sources": "s2"}}, {"threads": 8}, {"machine": {"processor": "y"}}]
)
def test_a_row_has_one_origin_and_a_card_names_all(make_run, tmp_path, other):
    same = {"code": CODE, "machine": MACHINE, "threads": 1}
    make_run("a", seed=1, **same)
    make_run("f", seed=1, quant="float", **(same | other))
    assert len(card(tmp_path)["origins"]) == 2
    make_run("b", seed=2, **(same | other))
    with pytest.raises(DataError, match="different code, machines or threads"):
        card(tmp_path)


def test_what_runs_do_not_hold_is_told_and_marked(make_run, tmp_path):
    make_run("a")
    with pytest.raises(DataError, match="commit=HASH"):
        card(tmp_path)
    with pytest.raises(SpecError, match="hex digits"):
        card(tmp_path, commit="abc or so")
    (origin,) = card(tmp_path, commit="0123456")["origins"]
    assert origin["code"] == {"commit": "0123456", "recorded": False}
    assert origin["machine"]["recorded"] is False


def test_a_start_of_each_seed_s_own_is_a_loop(make_run, tmp_path):
    for seed in (1, 2):
        start = make_run(f"starts/float_{seed}", seed=seed, quant="float")
        own = [f"init_from={start}"]
        make_run(f"q{seed}", seed=seed, changes={"init_from": str(start)}, overrides=own)
    found = card(tmp_path, commit="0123456")
    row = next(row for row in found["rows"] if "bcgd" in row["label"])
    assert row["commands"] == [
        "for SEED in 1 2; do "
        "python train.py quant=float seed=$SEED hydra.run.dir=float_$SEED; "
        "python train.py quant=bcgd_w1a4 seed=$SEED init_from=float_$SEED; done"
    ]


def test_a_start_that_all_seeds_share_is_made_once(make_run, tmp_path):
    start = make_run("starts/teacher_1", seed=1, quant="float")
    for seed in (1, 2):
        own = [f"init_from={start}"]
        make_run(f"q{seed}", seed=seed, changes={"init_from": str(start)}, overrides=own)
    found = card(tmp_path, commit="0123456")
    row = next(row for row in found["rows"] if "bcgd" in row["label"])
    assert row["commands"] == [
        "python train.py quant=float seed=1 hydra.run.dir=teacher_1",
        "python train.py -m quant=bcgd_w1a4 init_from=teacher_1 seed=1,2",
    ]


def test_a_peer_s_row_names_its_own_command(make_run, tmp_path):
    for seed in (1, 2):
        make_run(f"p{seed}", seed=seed, quant="float", changes={"peer.name": "parq_w1a32"})
    (row,) = card(tmp_path, commit="0123456")["rows"]
    assert row["commands"] == [
        "python scripts/peers.py method=parq_w1a32 folder=runs/peers seed=1,2"
    ]


def test_the_tuned_key_is_told_with_the_number_of_values(make_run, tmp_path):
    for index, lr in enumerate((0.01, 0.1)):
        make_run(f"a{index}", val=0.5 + index / 10, changes={"optimizer.lr": lr}, code=CODE)
    (row,) = card(tmp_path, tuned_key="optimizer.lr")["rows"]
    assert row["tuned"] == {"optimizer.lr": 0.1, "tried": 2}
