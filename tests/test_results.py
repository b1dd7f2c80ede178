"""The cards in results/: whole, computed from their own values, shown in the README, and true."""

import json
import math
import re
import statistics

import pytest
import yaml

from support import ROOT
from support.real_run import train

# the one in C where PyYAML was built with it: thousands of lines
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CARDS = sorted((ROOT / "results").glob("*.yaml"))


def rows():
    return [
        pytest.param(card, row, id=f"{path.stem} {row['label']}")
        for path in CARDS
        for card in [yaml.load(path.read_text(), Loader=LOADER)]
        for row in card["rows"]
    ]


def test_there_are_cards():
    assert CARDS


# quantiles of Student's t at 0.975, by degrees of freedom, from a printed table
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def p_value(t, df):
    """Two-sided, by the midpoint rule on Student's density."""
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    n, top = 20_000, math.atan(abs(t) / math.sqrt(df))  # t = sqrt(df) tan u: no infinite range
    u = [(i + 0.5) * top / n for i in range(n)]
    inside = sum(math.cos(v) ** (df - 1) for v in u) * top / n * math.sqrt(df) * scale
    return 1 - 2 * inside


def by_seed(row, state):
    return dict(zip(row["seeds"], row[state]["test"]["values"], strict=True))


def check_difference(told, own, other):
    """A told difference against the values of both rows; returns its uncorrected p."""
    gaps = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
    n, mean = len(gaps), statistics.fmean(gaps)
    assert told["mean"] == pytest.approx(mean, abs=3e-6)
    if n < 2 or told["p"] is None:
        return None
    error = statistics.stdev(gaps) / math.sqrt(n)
    half = T[n - 1] * error
    assert told["interval"] == pytest.approx([mean - half, mean + half], abs=1e-5, rel=1e-3)
    if error > 1e-6:  # values are rounded to six digits
        assert told["p"] == pytest.approx(p_value(mean / error, n - 1), rel=0.02, abs=1e-6)
    return told["p"]


def check_holm(told):
    """Corrected p of a table: the k-th smallest of m times m - k + 1, then made monotone."""
    tested = sorted((d for d in told if d and d["p"] is not None), key=lambda d: d["p"])
    highest = 0.0
    for rank, difference in enumerate(tested):
        highest = max(highest, min(1.0, difference["p"] * (len(tested) - rank)))
        assert difference["p_corrected"] == pytest.approx(highest, rel=0.01)


@pytest.mark.parametrize(("card", "row"), rows())
def test_a_row_follows_from_its_values(card, row):
    base = next(r for r in card["rows"] if r["label"] == card["reference"])
    for state in ("last", "selected"):
        if row[state] is None:
            continue
        test = row[state]["test"]
        values, n = test["values"], len(test["values"])
        assert n == len(row["seeds"]) == len(set(row["seeds"]))
        assert test["mean"] == pytest.approx(statistics.fmean(values), abs=2e-6)
        if n > 1:
            sd = statistics.stdev(values)
            assert test["sd"] == pytest.approx(sd, abs=2e-6)
            for name, factor in (("interval", 1 / n), ("prediction", 1 + 1 / n)):
                half = T[n - 1] * sd * math.sqrt(factor)
                ends = [test["mean"] - half, test["mean"] + half]
                assert test[name] == pytest.approx(ends, abs=1e-5, rel=1e-3)
        if row is not base and row[state]["difference"]:
            check_difference(row[state]["difference"], by_seed(row, state), by_seed(base, state))
    assert row["commands"]
    assert all(re.match(r"(for SEED in [\d ]+; do )?python (train|scripts/peers)\.py ", line)
               for line in row["commands"])  # fmt: skip
    assert not re.search(r"[ =]/", " ".join(row["commands"])), "a path of some machine"
    assert re.fullmatch(r"[0-9a-f]{16}", row["config"])


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_is_whole(path):
    card = yaml.safe_load(path.read_text())
    labels = [row["label"] for row in card["rows"]]
    assert sorted(label for o in card["origins"] for label in o["rows"]) == sorted(labels)
    assert all(re.fullmatch(r"[0-9a-f]{7,40}", o["code"]["commit"]) for o in card["origins"])
    for state in ("last", "selected"):
        check_holm([row[state]["difference"] for row in card["rows"] if row[state]])
    found = {row["label"]: row for row in card["rows"]}
    for claim in card["claims"]:
        own, other = (by_seed(found[claim[side]], "last") for side in ("better", "worse"))
        check_difference(claim["difference"], own, other)
        p, gap = claim["difference"]["p_corrected"], claim["difference"]["mean"]
        holds = "holds" if gap > 0 else "the opposite holds"
        assert claim["reading"] == (
            "not tested" if p is None else "within noise" if p >= 0.05 else holds
        )
    check_holm([claim["difference"] for claim in card["claims"]])


def alone(row):
    """The only command of a row that is a sweep of its own, None if it needs other runs."""
    (line, *more) = row["commands"]
    is_own = not more and line.startswith("python train.py -m ")
    return line if is_own and "init_from=" not in line and "teacher=" not in line else None


@pytest.mark.slow
def test_the_smallest_card_comes_out_again(tmp_path):
    """One more run of the cheapest row that is quantized, with a seed that the card has not."""
    found = [
        (row["seconds"], row)
        for path in CARDS
        for row in yaml.safe_load(path.read_text())["rows"]
        if row["cost"]["bits"] < 32 and len(row["seeds"]) > 2 and alone(row)
    ]
    _, row = min(found, key=lambda pair: pair[0])
    words = [w for w in alone(row).split()[3:] if not w.startswith("seed=")]
    folder = tmp_path / "run"
    train(*words, f"seed={max(row['seeds']) + 1}", f"hydra.run.dir={folder}", cwd=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    low, high = row["last"]["test"]["prediction"]
    assert low <= summary["last"]["test_acc"] <= high
    assert summary["bytes"] == row["cost"]["bytes"]
    assert summary["bits"] == row["cost"]["bits"]
