"""Which runs belong together, what they are called, which of them stands for a tuned key."""

import itertools
import json
import os

import pytest

from qat.report.runs.grouping import families_of, groups_of, tuned
from qat.report.runs.labels import shown, sort_key
from qat.report.runs.runs import read_run, read_runs


@pytest.fixture
def labels(tmp_path):
    return lambda: [group.label for group in groups_of(read_runs([tmp_path / "runs"]))]


def test_seeds_of_one_config_are_a_group(make_run, tmp_path):
    for seed in (3, 1, 2):
        make_run(f"b{seed}", seed=seed, test=0.1 * seed)
        make_run(f"f{seed}", seed=seed, quant="float", test=0.9)
    groups = groups_of(read_runs([tmp_path / "runs"]))
    assert [(g.label, len(g.runs), g.is_float) for g in groups] == [
        ("float", 3, True),
        ("bcgd_w1a4", 3, False),
    ]
    assert groups[1].values("last", "test_acc") == {1: 0.1, 2: 0.2, 3: pytest.approx(0.3)}
    assert list(groups[1].values("last", "test_acc")) == [1, 2, 3]


IGNORED = {
    "logger.csv._target_": "x",
    "callbacks.records": None,
    "training.threads": 2,
    "resume": "runs/a",
    "data.root": "/data",
    "data.workers": 4,
    "trainer.enable_progress_bar": False,
}


@pytest.mark.parametrize("key", IGNORED)
def test_where_files_lie_makes_no_other_group(make_run, labels, key):
    make_run("a", seed=1)
    make_run("b", seed=2, changes={key: IGNORED[key]})
    assert labels() == ["bcgd_w1a4"]


def test_the_root_of_a_folder_of_images_is_its_identity(make_run, labels):
    for root in ("cats", "dogs"):
        make_run(root, changes={"data.name": "image_folder", "data.root": f"/data/{root}"})
    assert labels() == ["root=cats", "root=dogs"]


def test_labels_say_what_differs_and_no_more(make_run, labels):
    make_run("a")
    make_run("b", quant="binary_connect_w1a4", changes={"quant.rule.name": "binary_connect"})
    for lr in (0.1, 0.02):
        name = f"lr{lr}"
        make_run(name, quant="lsq_w4a4", changes={"optimizer.lr": lr, "quant.weight.bits": 4})
    assert labels() == [
        "bcgd_w1a4 lr=0.02",
        "binary_connect_w1a4 lr=0.02",
        "lsq_w4a4 lr=0.02",
        "lsq_w4a4 lr=0.1",
    ]


def test_rates_are_sorted_by_size(make_run, labels):
    for rho in (1e-2, 0.0, 1e-6, 1e-4):
        changes, words = {"quant.rule.rho": rho}, [f"quant.rule.rho={rho}"]
        make_run(f"rho{rho}", changes=changes, overrides=words)
    assert labels() == ["rho=0", "rho=1e-06", "rho=0.0001", "rho=0.01"]
    words = ["a 10", "a 9", "a1", "b 0.5", "b 1e-3", "b"]
    assert sorted(words, key=sort_key) == ["a 9", "a 10", "a1", "b", "b 1e-3", "b 0.5"]


def test_what_the_command_set_is_told_under_another_name_too(make_run, labels):
    make_run("a", quant="binary_connect_w1a4", changes={"quant.rule.name": "binary_connect"})
    ends = {"quant.ends.last": "float"}
    make_run("b", changes=ends, overrides=["quant.ends.last=float"])
    assert labels() == ["bcgd_w1a4 last=float", "binary_connect_w1a4"]


def test_words_that_stand_for_two_keys_are_lengthened(make_run, labels):
    make_run("a")
    make_run("b", changes={"warm_start.epochs": 4})
    assert labels() == ["warm_start.epochs=2", "warm_start.epochs=4"]


def test_without_a_known_file_the_options_name_the_network(make_run, labels):
    for name, seed in (("a", 1), ("b", 2)):
        folder = make_run(name, seed=seed)
        (folder / ".hydra" / "overrides.yaml").unlink()
    folder = make_run("c", changes={"quant.weight": {"method": "lsq", "bits": 4}})
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    assert labels() == ["bcgd_w1a4", "lsq_w4a4"]


def test_a_peer_is_called_by_its_name_and_is_no_float_network(make_run, tmp_path):
    make_run("a", quant="float", changes={"peer.name": "parq_w1a32"})
    make_run("b", quant="float")
    groups = groups_of(read_runs([tmp_path / "runs"]))
    assert [(g.label, g.is_float) for g in groups] == [("float", True), ("parq_w1a32", False)]


def test_a_start_of_its_own_for_each_seed_is_one_group(make_run, labels, tmp_path):
    for seed in (1, 2):
        source = make_run(f"source{seed}", seed=seed, quant="float")
        checkpoint = source / "checkpoints" / "last" / "step=1.ckpt"
        make_run(f"tuned{seed}", seed=seed, changes={"init_from": str(checkpoint)})
    make_run("from_other", changes={"init_from": "elsewhere.ckpt"})
    found = groups_of(read_runs([tmp_path / "runs"]))
    sizes = sorted((group.label.partition("-")[0], len(group.runs)) for group in found)
    assert sizes == [
        ("bcgd_w1a4 init_from=elsewhere.ckpt", 1),
        ("bcgd_w1a4 init_from=float", 2),
        ("float init_from=null", 2),
    ]


def test_a_repeated_seed_counts_once(make_run, tmp_path):
    make_run("2026-01-01", test=0.1)
    make_run("2026-01-02", test=0.2)
    make_run("2026-01-03", state="failed", error="killed")
    (group,) = groups_of(read_runs([tmp_path / "runs"]))
    assert len(group.runs) == 3
    assert len(group.all_runs) == 2
    assert group.values("last", "test_acc") == {1: 0.2}


def test_of_a_repeated_seed_the_newest_counts_whatever_it_is_called(make_run, tmp_path):
    for name, test, when in (("b", 0.3, 3000), ("a", 0.1, 5000), ("c", 0.2, 4000)):
        os.utime(make_run(name, test=test) / "summary.json", (when, when))
    (group,) = groups_of(read_runs([tmp_path / "runs"]))
    assert group.values("last", "test_acc") == {1: 0.1}


def test_families_are_data_and_network(make_run, tmp_path):
    for data, model in itertools.product(("digits", "glyphs"), ("lenet5", "vgg11")):
        changes = {"data.name": data, "model.name": model}
        make_run(f"{data}{model}", changes=changes)
        make_run(f"{data}{model}f", changes=changes, quant="float")
    make_run("broken", state="failed", changes={"optimizer.lr": 1e6})
    families = families_of(read_runs([tmp_path / "runs"]))
    assert [family.title for family in families] == [
        *("digits, lenet5", "digits, vgg11", "glyphs, lenet5", "glyphs, vgg11")
    ]
    for family in families:  # what failed lengthens no label
        assert [group.label for group in family.groups] == ["float", "bcgd_w1a4"]


def test_a_tuned_key_is_chosen_on_validation_at_the_last_epoch(make_run, tmp_path):
    # (val at the last epoch, val at the selected one, test); tempting values are not the winner's
    table = {0.1: (0.80, 0.99, 0.99), 0.03: (0.90, 0.91, 0.50), 0.01: (0.70, 0.95, 0.90)}
    for (lr, (val, best, test)), seed in itertools.product(table.items(), (1, 2)):
        make_run(
            f"{lr}-{seed}",
            seed=seed,
            val=val,
            test=test,
            selected=(best, test),
            changes={"optimizer.lr": lr},
            overrides=[f"optimizer.lr={lr}"],
        )
    # one lucky seed of a fifth value
    make_run("lucky", val=0.999, changes={"optimizer.lr": 0.3})
    make_run("nan", state="failed", changes={"optimizer.lr": 9.0})
    make_run("f", quant="float", changes={"optimizer.lr": 0.1})
    runs = read_runs([tmp_path / "runs"])
    found = {group.label: group for group in tuned(groups_of(runs), "optimizer.lr")}
    assert list(found) == ["float", "bcgd_w1a4"]
    assert found["bcgd_w1a4"].values("last", "test_acc") == {1: 0.5, 2: 0.5}
    assert found["bcgd_w1a4"].tried_values == (0.01, 0.03, 0.1)  # neither the lucky nor the failed
    assert found["bcgd_w1a4"].tried == 3
    assert len(found["bcgd_w1a4"].all_runs) == 7  # the lucky one took time, too
    assert found["float"].tried_values == (0.1,)
    (family,) = families_of(runs, tuned_key="optimizer.lr")
    assert [group.key for group in family.groups] == [group.key for group in found.values()]


def test_a_tuned_key_is_chosen_by_the_mean_or_by_the_worst_seed(make_run, tmp_path):
    for lr, scores in {0.1: (0.99, 0.70), 0.03: (0.82, 0.81)}.items():
        for seed, val in enumerate(scores):
            make_run(
                f"{lr}-{seed}",
                seed=seed,
                val=val,
                changes={"optimizer.lr": lr},
                overrides=[f"optimizer.lr={lr}"],
            )
    groups = groups_of(read_runs([tmp_path / "runs"]))
    for by, rate in (("mean", 0.1), ("worst", 0.03)):
        (found,) = tuned(groups, "optimizer.lr", by)
        assert found.runs[0].config["optimizer.lr"] == rate


def test_labels_are_short_and_differ_even_if_values_do_not_look_so(make_run, labels):
    for end in "ab":
        make_run(end, changes={"model.note": "x" * 100 + end})
    assert labels() == ["note=" + "x" * 37 + "...", "note=" + "x" * 37 + "... #2"]
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'


def test_runs_without_a_config_are_in_no_group(make_run, tmp_path):
    folder = make_run("a")
    (folder / ".hydra" / "config.yaml").write_text(json.dumps([1]))
    assert groups_of([read_run(folder)]) == []
    assert families_of([read_run(folder)]) == []
