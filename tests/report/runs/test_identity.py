"""Starts of runs that may be gone, hostile or circular; test images that make another family."""

import shutil
from dataclasses import fields

import pytest

from qat.report.runs.grouping import families_of, groups_of
from qat.report.runs.runs import read_runs
from qat.spec.data import FAMILIES, DataSpec, GlyphsSpec, images_by
from qat.spec.numbers import moves_nothing
from qat.spec.schema import declared


@pytest.fixture
def sizes(tmp_path):
    """Label -> seeds of its runs."""

    def found():
        groups = groups_of(read_runs([tmp_path / "runs"]))
        return {group.label: sorted(run.seed for run in group.runs) for group in groups}

    return found


def test_starts_that_are_gone_are_told_by_their_names_without_the_seed(make_run, sizes):
    for seed in (1, 2):
        for lr in ("0.1", "0.2"):
            start = f"gone/float_{lr}_{seed}/checkpoints/step=2.ckpt"
            make_run(f"{seed}-{lr}", seed=seed, changes={"init_from": start})
    assert list(sizes().values()) == [[1, 2], [1, 2]]  # 0.1 and 0.2 stay apart


@pytest.mark.parametrize(
    ("one", "two", "groups"),
    [
        ("gone/float_1", "gone/float_2", 1),
        ("gone/seed=1/last.ckpt", "gone/seed=2/last.ckpt", 1),
        ("gone/float1", "gone/float2", 2),
        ("gone/float_1a", "gone/float_2a", 2),
        ("gone/0.1", "gone/0.2", 2),
        ("gone/1.5", "gone/2.5", 2),
        ("gone/a.ckpt", "gone/b.ckpt", 2),
        ("gone/epoch=1", "gone/epoch=2", 2),
    ],
)
def test_the_seed_must_be_a_word(make_run, sizes, one, two, groups):
    make_run("a", seed=1, changes={"init_from": one})
    make_run("b", seed=2, changes={"init_from": two})
    assert len(sizes()) == groups


def test_a_lost_start_that_all_seeds_share_is_one(make_run, sizes):
    for seed in (1, 2, 3):
        make_run(f"a{seed}", seed=seed, changes={"init_from": "gone/float_1"})
    assert list(sizes().values()) == [[1, 2, 3]]


def test_starts_that_cannot_be_read_stay_apart(make_run, sizes):
    for seed in (1, 2):
        source = make_run(f"source{seed}", seed=seed, quant="float")
        (source / ".hydra" / "config.yaml").write_text("a: [")
        start = source.parent / f"source{seed}"
        make_run(f"tuned{seed}", seed=seed, changes={"init_from": str(start)})
    assert list(sizes().values()) == [[1], [2]]


@pytest.mark.parametrize("length", [200, 5000, 100_000])
def test_a_long_path_is_a_path(make_run, sizes, length):
    make_run("a", changes={"init_from": "x" * length})
    make_run("b", changes={"distill.teacher": f"/{'x/' * length}"})
    assert len(sizes()) == 2


def test_runs_that_start_from_themselves_end(make_run, sizes, tmp_path):
    place = tmp_path / "runs"
    make_run("self", changes={"init_from": str(place / "self")})
    make_run("egg", changes={"init_from": str(place / "hen"), "optimizer.lr": 1})
    make_run("hen", changes={"init_from": str(place / "egg"), "optimizer.lr": 2})
    for index in range(60):
        changes = {"init_from": str(place / f"c{index + 1}"), "optimizer.lr": 3}
        make_run(f"c{index}", changes=changes)
    assert len(sizes()) >= 4


def test_a_chain_of_starts_is_followed_to_its_begin(make_run, sizes, tmp_path):
    for seed in (1, 2):
        first = make_run(f"one{seed}x", seed=seed, quant="float")
        second = make_run(f"two{seed}x", seed=seed, changes={"init_from": str(first)})
        make_run(f"three{seed}x", seed=seed, changes={"init_from": str(second)})
    assert list(sizes().values()) == [[1, 2]] * 3
    shutil.rmtree(tmp_path / "runs" / "one1x")
    assert len(sizes()) > 3  # what cannot be known is not said to be equal


# -- families -------------------------------------------------------------------------------------


def titles(tmp_path):
    families = families_of(read_runs([tmp_path / "runs"]))
    return [(family.title, len(family.groups)) for family in families]


GLYPHS = {"data.name": "glyphs", "data.glyphs.seed": 0, "data.glyphs.difficulty": 0.25}


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        (GLYPHS, GLYPHS | {"data.glyphs.difficulty": 0.5}, ("difficulty=0.25", "difficulty=0.5")),
        (GLYPHS, GLYPHS | {"data.glyphs.seed": 7}, ("seed=0", "seed=7")),
        (
            {"data.name": "image_folder", "data.root": "/a/cats"},
            {"data.name": "image_folder", "data.root": "/a/dogs"},
            ("root=cats", "root=dogs"),
        ),
        (
            {"data.name": "image_folder", "data.root": "/a/x"},
            {"data.name": "image_folder", "data.root": "/b/x"},
            ("root=x", "root=x #2"),
        ),
    ],
)
def test_other_test_images_are_another_family(make_run, tmp_path, one, two, told):
    for name, changes in (("one", one), ("two", two)):
        make_run(name, changes=changes)
        make_run(f"{name}f", changes=changes, quant="float")
    data = one["data.name"]
    assert sorted(titles(tmp_path)) == [(f"{data}, lenet5, {words}", 2) for words in told]


FOLDER = {"data.name": "image_folder", "data.root": "/a/x", "data.image_size": 32}
# another value of each own option of a data set that moves numbers
OTHERS = {
    ("image_folder", "labels"): "a.csv",
    ("image_folder", "train_list"): "a.txt",
    ("image_folder", "val_list"): "a.txt",
    ("image_folder", "test_list"): "a.txt",
    ("image_folder", "split"): "path",
    ("image_folder", "val_share"): 0.1,
    ("image_folder", "test_share"): 0.1,
    ("image_folder", "upright"): True,
    ("image_folder", "root"): "/a/y",
    **{("glyphs", f"glyphs.{f.name}"): 99 for f in fields(GlyphsSpec)},
}


def test_every_option_that_makes_the_images_is_known():
    known = {
        (name, option.removeprefix("data."))
        for name in FAMILIES
        for own in images_by(name)
        for option in [o.key for o in declared(DataSpec, "data") if not o.is_group]
        if option == f"data.{own}" or option.startswith(f"data.{own}.")
        if not moves_nothing(option)
    }
    assert known == set(OTHERS)


@pytest.mark.parametrize(("name", "option"), OTHERS)
def test_other_images_are_another_family_and_other_groups(make_run, tmp_path, sizes, name, option):
    same = FOLDER if name == "image_folder" else {"data.name": name}
    for run, changes in (("one", {}), ("two", {f"data.{option}": OTHERS[name, option]})):
        make_run(run, changes=same | changes)
    assert len(titles(tmp_path)) == len(sizes()) == 2
    assert len({title for title, _ in titles(tmp_path)}) == 2


def test_an_option_that_came_later_is_as_before_at_its_default(make_run, tmp_path, sizes):
    make_run("older", seed=1, changes=FOLDER)
    make_run("now", seed=2, changes=FOLDER | {"data.split": "index", "data.upright": False})
    make_run("skip", seed=3, changes=FOLDER | {"data.unreadable": "skip", "data.scan": "headers"})
    assert titles(tmp_path) == [("image_folder, lenet5", 1)]
    assert list(sizes().values()) == [[1, 2, 3]]


def test_so_many_batches_of_another_size_are_another_family(make_run, tmp_path):
    for size in (64, 128):
        make_run(f"all{size}", changes={"data.batch_size": size})
        changes = {"data.batch_size": size, "trainer.limit_test_batches": 2}
        make_run(f"two{size}", changes=changes)
    share = "digits, lenet5, limit_test_batches=2, batch_size"
    assert sorted(titles(tmp_path)) == [
        ("digits, lenet5", 2),
        (f"{share}=128", 1),
        (f"{share}=64", 1),
    ]


def test_a_share_of_the_test_part_is_another_family(make_run, tmp_path):
    make_run("all", changes={"trainer.limit_test_batches": 1.0})
    make_run("older")
    make_run("one", changes={"trainer.limit_test_batches": 1})
    share = ("digits, lenet5, limit_test_batches=1, batch_size=64", 1)
    assert sorted(titles(tmp_path)) == [("digits, lenet5", 2), share]


def test_titles_are_plain_where_nothing_must_be_told(make_run, tmp_path):
    make_run("a", changes=GLYPHS)
    make_run("b", changes={"data.root": "/elsewhere", "data.image_size": 32})
    make_run("failed", changes=GLYPHS | {"data.glyphs.seed": 1}, state="failed")
    assert titles(tmp_path) == [("digits, lenet5", 1), ("glyphs, lenet5", 1)]
