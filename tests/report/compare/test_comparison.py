"""Groups beside a reference: pairs by seed, verdicts, the correction over the table."""

import math

import pytest

from qat.report.compare.comparison import compare, reference_of
from qat.report.page.family_section import readings
from qat.report.runs.grouping import groups_of
from qat.report.runs.runs import read_runs

FLOAT = {1: 0.95, 2: 0.96, 3: 0.94}
LOWER = {1: 0.8501, 2: 0.86, 3: 0.84}  # 10 points below, each by nearly the same
NOISY = {1: 0.99, 2: 0.90, 3: 0.95}
LONELY = {7: 0.5}


@pytest.fixture
def groups(make_run, tmp_path):
    table = {
        "float": FLOAT,
        "bcgd_w1a4": LOWER,
        "binary_connect_w1a4": NOISY,
        "binary_relax_w1a4": LONELY,
        "lsq_w4a4": {2: 0.95},
    }
    for quant, values in table.items():
        changes = {} if quant == "float" else {"quant.rule.name": quant}
        for seed, test in values.items():
            make_run(f"{quant}{seed}", quant=quant, seed=seed, test=test, changes=changes)
    return groups_of(read_runs([tmp_path / "runs"]))


def test_differences_are_paired_by_seed_and_corrected_together(groups):
    rows = {row.group.label: row for row in compare(groups)}
    assert {label: row.verdict for label, row in rows.items()} == {
        "float": "reference",
        "bcgd_w1a4": "lower",
        "binary_connect_w1a4": "within noise",
        "binary_relax_w1a4": "no common seed",
        "lsq_w4a4": "one seed",
    }
    gaps = [LOWER[seed] - FLOAT[seed] for seed in FLOAT]
    center = sum(gaps) / 3
    sd = math.sqrt(sum((gap - center) ** 2 for gap in gaps) / 2)
    t = abs(center) / sd * math.sqrt(3)
    own = rows["bcgd_w1a4"]
    assert own.difference.mean == pytest.approx(center)
    assert own.difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    # two rows were tested: the smaller p counts twice
    assert own.p == pytest.approx(2 * own.difference.p)
    assert rows["binary_connect_w1a4"].p == rows["binary_connect_w1a4"].difference.p
    assert rows["lsq_w4a4"].difference.mean == pytest.approx(0.95 - 0.96)
    assert rows["float"].difference is None
    assert own.cost("bytes") == 1000
    assert own.cost("nothing") is None


def test_any_group_can_be_the_reference(groups):
    rows = {row.group.label: row for row in compare(groups, reference="bcgd_w1a4")}
    assert rows["float"].verdict == "higher"
    assert rows["bcgd_w1a4"].verdict == "reference"
    assert reference_of(groups, "unknown").label == "float"
    assert reference_of(groups[1:], None).label == "bcgd_w1a4"
    assert compare([]) == []


def test_the_readings_are_the_verdicts(groups):
    assert readings(compare(groups)) == [
        "Below float, beyond the noise of the seeds (points): bcgd_w1a4 (−10.00).",  # noqa: RUF001
        "These seeds cannot tell from float (points): binary_connect_w1a4 (−0.33).",  # noqa: RUF001
        "One common seed with float, which says nothing about noise (points): lsq_w4a4 (−1.00).",  # noqa: RUF001
        "No common seed with float, so no comparison: binary_relax_w1a4.",
    ]


def test_the_epoch_that_is_judged_is_the_one_asked_for(make_run, tmp_path):
    make_run("a", quant="float", test=0.5, selected=(0.7, 0.6))
    groups = groups_of(read_runs([tmp_path / "runs"]))
    (last,), (selected,) = compare(groups), compare(groups, state="selected")
    assert (last.test.mean, last.validation.mean) == (0.5, 0.95)
    assert (selected.test.mean, selected.validation.mean) == (0.6, 0.7)


def test_agreement_stands_for_accuracy_where_no_label_was_read(make_run, tmp_path):
    last = {"val_agreement": 0.75, "test_acc": 0.5}
    make_run("a", last=last)
    (row,) = compare(groups_of(read_runs([tmp_path / "runs"])))
    assert row.validation.mean == 0.75
