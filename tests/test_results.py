"""The cards in results/: whole, computed from their own values, shown in the README, and true."""

import json
import math
import re
import statistics

import pytest
import yaml
from real_run import ROOT, train

from qat.report.card_table import with_tables

CARDS = sorted((ROOT / "results").glob("*.yaml"))


def rows():
    return [
        pytest.param(card, row, id=f"{path.stem} {row['label']}")
        for path in CARDS
        for card in [yaml.safe_load(path.read_text())]
        for row in card["rows"]
    ]


def test_there_are_cards():
    assert CARDS


@pytest.mark.parametrize(("card", "row"), rows())
def test_a_row_follows_from_its_values(card, row):
    base = next(r for r in card["rows"] if r["label"] == card["reference"])
    for state in ("last", "selected"):
        if row[state] is None:
            continue
        test = row[state]["test"]
        values = test["values"]
        assert len(values) == len(row["seeds"]) == len(set(row["seeds"]))
        assert test["mean"] == pytest.approx(statistics.fmean(values), abs=2e-6)
        if len(values) < 2:
            continue
        assert test["sd"] == pytest.approx(statistics.stdev(values), abs=2e-6)
        low, high = test["interval"]
        assert (high - low) / 2 == pytest.approx(
            (test["prediction"][1] - test["mean"]) / math.sqrt(len(values) + 1), abs=3e-6
        )
        if row is not base and row[state]["difference"]:
            other = dict(zip(base["seeds"], base[state]["test"]["values"], strict=True))
            own = dict(zip(row["seeds"], values, strict=True))
            gaps = [own[s] - other[s] for s in sorted(own.keys() & other.keys())]
            assert row[state]["difference"]["mean"] == pytest.approx(
                statistics.fmean(gaps), abs=3e-6
            )
    assert re.fullmatch(r"python (train|scripts/peers)\.py .*seed=[\d,]+", row["command"])
    assert card["code"]["commit"]


def test_the_readme_shows_the_cards_as_they_are():
    page = (ROOT / "README.md").read_text()
    assert with_tables(page, ROOT) == page
    shown = re.findall(r"<!-- card: (\S+) -->", page)
    assert sorted(shown) == sorted(f"results/{path.name}" for path in CARDS)


def alone(command):
    """Whether a row's command needs no other run before it."""
    return "train.py" in command and "init_from=" not in command and "teacher=" not in command


def test_the_smallest_card_comes_out_again(tmp_path):
    """One more run of the cheapest row that is quantized, with a seed that the card has not."""
    found = [
        (row["seconds"], row)
        for path in CARDS
        for row in yaml.safe_load(path.read_text())["rows"]
        if row["label"] != "float" and len(row["seeds"]) > 2 and alone(row["command"])
    ]
    _, row = min(found, key=lambda pair: pair[0])
    words = [w for w in row["command"].split()[2:] if w != "-m" and not w.startswith("seed=")]
    folder = tmp_path / "run"
    train(*words, f"seed={max(row['seeds']) + 1}", f"hydra.run.dir={folder}", cwd=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    low, high = row["last"]["test"]["prediction"]
    assert low <= summary["last"]["test_acc"] <= high
    assert summary["bytes"] == row["cost"]["bytes"]
