"""Claims about two networks: paired by seed, corrected together, said in words."""

import statistics

import pytest

from qat.errors import SpecError
from qat.report.compare.comparison import claims_of
from qat.report.runs.grouping import families_of
from qat.report.runs.runs import read_runs

BETTER, WORSE = (0.95, 0.96, 0.97, 0.99), (0.90, 0.92, 0.92, 0.93)


@pytest.fixture
def groups(make_run, tmp_path):
    for seed, (one, two) in enumerate(zip(BETTER, WORSE, strict=True)):
        make_run(f"a{seed}", seed=seed, quant="bcgd_w1a4", test=one)
        rho = {"quant.rule.rho": 0.1}
        make_run(f"b{seed}", seed=seed, test=two, changes=rho, overrides=["quant.rule.rho=0.1"])
    make_run("c", seed=99, quant="float", test=0.5)
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    return family.groups


def test_the_words_follow_the_numbers(groups):
    labels = {group.label for group in groups}
    one = next(label for label in labels if "0.1" not in label and "float" not in label)
    two = next(label for label in labels if "0.1" in label)
    texts = [f"{one} > {two}", f"{two} > {one}", f"float > {one}"]
    first, second, third = claims_of(groups, texts, state="last")
    gaps = [a - b for a, b in zip(BETTER, WORSE, strict=True)]
    assert first.difference.mean == pytest.approx(statistics.fmean(gaps))
    assert (first.reading, second.reading) == ("holds", "the opposite holds")
    assert second.difference.mean == pytest.approx(-first.difference.mean)
    assert first.p == second.p == pytest.approx(2 * first.difference.p)  # two tests
    assert third.reading == "not tested"


@pytest.mark.parametrize("text", ["float", "float > nothing", "> float", "a >= b"])
def test_what_is_no_claim_is_refused(groups, text):
    with pytest.raises(SpecError, match="claims"):
        claims_of(groups, [text], state="last")
