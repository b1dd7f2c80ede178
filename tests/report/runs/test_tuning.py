"""How much was tried, and whether the best value may lie beyond it."""

import itertools

import pytest

from qat.errors import SpecError
from qat.report.runs.grouping import families_of
from qat.report.runs.runs import read_runs

KEY = "optimizer.lr"


@pytest.fixture
def make_values(make_run, tmp_path):
    """A function from value -> (validation, finished seeds, failed seeds) to the only group."""

    def make(table, key=KEY):
        for value, (val, finished, failed) in table.items():
            for seed in (*finished, *failed):
                state = "failed" if seed in failed else "finished"
                name = f"{value}-{seed}"
                make_run(name, seed=seed, val=val, changes={key: value}, state=state)
        (family,) = families_of(read_runs([tmp_path / "runs"]), tuned_key=key)
        (group,) = family.groups
        return group

    return make


@pytest.mark.parametrize(
    ("table", "best", "tried"),
    [
        # all seeds of all values
        ({0.1: (0.5, (1, 2), ()), 0.2: (0.6, (1, 2), ())}, 0.2, (0.1, 0.2)),
        # a search on two seeds, and all seeds of its winner
        ({1: (0.5, (1, 2), ()), 2: (0.6, (1, 2, 3), ()), 3: (0.4, (1, 2), ())}, 2, (1, 2, 3)),
        # one seed of a value failed, or all of them
        ({1: (0.5, (1, 2), ()), 2: (0.9, (1,), (2,)), 3: (0.4, (1, 2), ())}, 1, (1, 3)),
        ({1: (0.5, (1, 2), ()), 2: (0.9, (), (1, 2))}, 1, (1,)),
        # fewer seeds than the rivals
        ({1: (0.5, (1, 2), ()), 2: (0.9, (1,), ()), 3: (0.4, (1, 2), ())}, 1, (1, 3)),
        # a seed more that failed does not undo what was compared
        ({1: (0.5, (1, 2), ()), 2: (0.4, (1, 2), (3,))}, 1, (1, 2)),
    ],
)
def test_only_what_was_compared_was_tried(make_values, table, best, tried):
    group = make_values(table)
    assert group.finished[0].config[KEY] == best
    assert group.tried_values == tried
    assert group.tried == len(tried)
    finished = sum(len(seeds) for _, seeds, _ in table.values())
    assert len(group.all_runs) == finished
    assert len(group.rivals) == len(table) - 1


@pytest.mark.parametrize(
    ("values", "best", "expected"),
    [
        ((0.1, 0.2, 0.3), 0.2, False),
        ((0.1, 0.2, 0.3), 0.3, True),
        ((0.1, 0.2, 0.3), 0.1, True),
        ((9, 10, 100), 10, False),  # by size, not as texts
        ((0.1,), 0.1, False),  # no range at all
        (("sgd", "adam"), "adam", False),
        ((True, False), True, False),
    ],
)
def test_the_end_of_the_range(make_values, values, best, expected):
    key = "optimizer.x"
    group = make_values({v: (0.9 if v == best else 0.5, (1, 2), ()) for v in values}, key)
    assert group.is_at_end(key) is expected


def test_without_tuning_nothing_was_tried(make_run, tmp_path):
    for lr, seed in itertools.product((0.1, 0.2), (1, 2)):
        make_run(f"{lr}-{seed}", seed=seed, changes={KEY: lr})
    (family,) = families_of(read_runs([tmp_path / "runs"]))
    assert [(g.tried, len(g.all_runs)) for g in family.groups] == [(0, 2), (0, 2)]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "did you mean optimizer.lr"),
        ("optimiser.lr", "did you mean optimizer.lr"),
        ("zzz", "give a dotted key"),
    ],
)
def test_a_key_of_no_config_is_refused(make_run, tmp_path, key, meant):
    make_run("a")
    with pytest.raises(SpecError, match=f"tuned={key} is a key of no run's config; {meant}"):
        families_of(read_runs([tmp_path / "runs"]), tuned_key=key)
    assert families_of([], tuned_key=key) == []


def test_a_key_that_only_some_networks_have_is_one(make_run, tmp_path):
    make_run("a")
    make_run("b", quant="float", changes={"optimizer.extra": 1})
    (family,) = families_of(read_runs([tmp_path / "runs"]), tuned_key="optimizer.extra")
    assert [group.tried_values for group in family.groups] == [(1,), (None,)]
