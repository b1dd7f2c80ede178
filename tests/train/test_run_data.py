"""Runs on image folders that change: told by name, refused where the run would be another."""

import json
import shutil

import pytest

from qat.commands.evaluate import main as evaluate
from qat.commands.export import main as export
from qat.storage.data_record import FILE, read_record
from support.image_folders import write_pictures
from support.products import mostly_slow
from support.real_run import PLAIN, kill_after, train

SMALL = (
    "model=lenet5", "data=image_folder", "data.root=d", "data.image_size=16", "data.workers=0",
    "data.batch_size=8", "trainer.max_epochs=2", "training.threads=1", "warm_start.epochs=0",
    *PLAIN,
)  # fmt: skip
LONGER = ("resume_allow=[trainer.max_epochs]", "trainer.max_epochs=3")

# damages an image once the training is done, as a disk does
LATE = """
import pathlib, sys
from qat.train import fit
victim, judge = pathlib.Path(sys.argv.pop(1)), fit.summarized
def damaging(*arguments):
    victim.write_bytes(victim.read_bytes()[:60])
    return judge(*arguments)
fit.summarized = damaging
from qat.commands.train import main
main()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images in d and a finished run on them in run; what the run printed."""
    home = tmp_path_factory.mktemp("finished")
    write_pictures(home / "d", {"cat": 10, "dog": 10, "eel": 20})
    out = train(*SMALL, "hydra.run.dir=run", cwd=home)
    return home, out


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    """A copy of it, to be changed; the images lie elsewhere than those that the run had."""
    copy = tmp_path / "home"
    shutil.copytree(finished[0], copy)
    config = copy / "run" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("root: d\n", f"root: {copy / 'd'}\n"))
    monkeypatch.chdir(copy)
    return copy


def first(home, part):
    return next(iter(read_record(home / "run").parts[part].files))


def test_a_run_says_and_records_what_it_found(finished):
    home, out = finished
    assert "data: 3 classes, 24/8/8 images; 40 files decoded in 0." in out
    record = read_record(home / "run")
    assert [part.count for part in record.parts.values()] == [24, 8, 8]
    assert record.split == "path"


def test_other_classes_are_refused(home):
    (home / "d" / "cat").rename(home / "d" / "zebra")
    out = train("resume=run", *LONGER, cwd=home, code=1)
    assert "class cat is gone, class zebra is new; bring those back, or begin a new run" in out


def test_other_training_images_are_refused_by_name(home):
    name = first(home, "train")
    shutil.copy(home / "d" / name, home / "kept.png")
    (home / "d" / name).unlink()
    out = train("resume=run", *LONGER, cwd=home, code=1)
    assert f"train: {name} is gone; bring those back" in out
    assert "resume_allow=[images]" not in out  # the order would be another
    shutil.copy(home / "kept.png", home / "d" / name)
    (home / "d" / name).open("ab").write(b"edited")
    out = train("resume=run", *LONGER, cwd=home, code=1)
    assert f"train: {name} has another size" in out
    out = train("resume=run", LONGER[1], "resume_allow=[trainer.max_epochs,images]", cwd=home)
    assert f"resume: the data are not those that the run began with: train: {name} has" in out


def test_files_that_come_and_test_files_that_go_leave_training_as_it_was(home):
    name = first(home, "test")
    (home / "d" / name).unlink()
    shutil.copy(home / "d" / "eel" / "001.png", home / "d" / "eel" / "new.png")
    out = train("resume=run", *LONGER, cwd=home)
    assert f"resume: the data are not those that the run began with: test: {name} is gone" in out
    assert "data: 3 classes, 24/8/7 images" in out


@pytest.mark.slow
def test_a_run_without_a_record_is_known_by_its_counts(home):
    (home / "run" / FILE).unlink()
    out = train("resume=run", *LONGER, cwd=home)
    assert "not those" not in out
    assert not (home / "run" / FILE).exists()
    for number in range(6):
        (home / "d" / "cat" / f"{number:03d}.png").unlink()
    last = ("resume_allow=[trainer.max_epochs]", "trainer.max_epochs=4")
    out = train("resume=run", *last, cwd=home, code=1)
    assert "the run began with the training images (24), now there are (2" in out


def test_evaluate_and_export_keep_to_the_parts_of_the_run_and_tell(home, capsys):
    evaluate(["model=run", "latency=[]"])
    assert "note" not in capsys.readouterr().out
    name = first(home, "test")
    (home / "d" / name).unlink()
    told = f"note: not the images that run held out: test: {name} is gone\n"
    evaluate(["model=run", "latency=[]"])
    out = capsys.readouterr().out
    assert told in out
    assert "7 images of image_folder" in out
    export(["run=run"])
    assert told in capsys.readouterr().out
    # elsewhere the parts are carved anew, and what was trained on is told
    here = ("data=image_folder", f"data.root={home / 'd'}", "data.image_size=16")
    evaluate(["model=run", "latency=[]", *here])
    out = capsys.readouterr().out
    assert f"test: {name} is gone, " in out
    assert " was in the run's validation part" in out


def test_packed_files_say_how_their_parts_were_carved(home, capsys):
    export(["run=run"])
    evaluate(["model=run/export/packed.safetensors", f"data.root={home / 'd'}", "latency=[]"])
    lines = capsys.readouterr().out.splitlines()
    at_export = lines[-1].split()[-1]
    recorded = json.loads((home / "run" / "summary.json").read_text())["selected"]["test_acc"]
    assert float(at_export) == pytest.approx(recorded, abs=1e-4)
    assert f"test       {recorded:.4f}  8 images" in "\n".join(lines)
    content = (home / "run" / "export" / "packed.safetensors").read_bytes()
    assert b'\\"split\\":\\"path\\"' in content
    assert b'\\"upright\\":true' in content


@pytest.mark.slow
@pytest.mark.parametrize("cure", ["remove", "repair"])
def test_a_trained_run_whose_test_failed_does_it_after_a_repair(finished, home, cure, tmp_path):
    name = first(home, "test")
    victim, script = home / "d" / name, tmp_path / "late.py"
    script.write_text(LATE)
    whole = victim.read_bytes()
    out = train(str(victim), *SMALL, "hydra.run.dir=late", cwd=home, code=1, script=script)
    assert f"{name} is not a readable image" in out
    assert f"replace or remove the file; then resume={home / 'late'} tests what is trained" in out
    assert not (home / "late" / "summary.json").exists()
    victim.unlink() if cure == "remove" else victim.write_bytes(whole)
    out = train("resume=late", cwd=home)
    assert "resume: the run is trained; what is left is its test\n" in out
    assert (f"test: {name} is gone" in out) == (cure == "remove")
    late, run = (
        json.loads((folder / "summary.json").read_text())["last"]
        for folder in (home / "late", finished[0] / "run")
    )
    assert late["val_acc"] == run["val_acc"]
    assert (late == run) == (cure == "repair")


def test_unreadable_files_are_refused_before_training_or_left_out(home):
    name = first(home, "test")
    (home / "d" / name).write_bytes(b"")
    (home / "d" / "eel" / "new.png").write_bytes(b"")  # of no part of the run
    out = train("resume=run", *LONGER, cwd=home, code=1)
    assert f"1 of 40 image files cannot be read: {home / 'd' / name} (it is empty); repl" in out
    out = train("resume=run", *LONGER, "data.unreadable=skip", cwd=home)
    assert f"test: {name} is gone" in out
    assert "data: 3 classes, 24/8/7 images; 41 files decoded in " in out
    assert f"data: unreadable and left out: 2 files, {home / 'd'}" in out


@pytest.mark.slow
def test_a_killed_run_ends_on_the_same_bits_though_files_came(finished, home):
    kill_after(3, home / "killed", *SMALL, "training.checkpoint_every=1", cwd=home)
    for number in range(9):
        shutil.copy(home / "d" / "eel" / "001.png", home / "d" / "eel" / f"new{number}.png")
    train("resume=killed", cwd=home)
    metrics = [folder / "metrics.csv" for folder in (home / "killed", finished[0] / "run")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


@pytest.mark.parametrize("part", mostly_slow(["train", "val", "test"], day=(2,)))
def test_a_share_that_is_no_batch_is_refused_before_training(finished, part):
    share = f"trainer.limit_{part}_batches=0.01"
    out = train(*SMALL, share, "hydra.run.dir=share", cwd=finished[0], code=1)
    assert f"{share} of {3 if part == 'train' else 1} batches is none; use a number" in out
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_teacher_that_saw_what_the_student_holds_out(finished, home):
    (home / "d" / first(home, "test")).unlink()
    student = ("distill=kd", f"distill.teacher={home / 'run'}")
    out = train(*SMALL, *student, "hydra.run.dir=student", cwd=home)
    assert " held out other images: validation: " in out
    assert " was in the run's training part; test: " in out


@pytest.mark.slow
def test_a_run_by_lists_goes_on_and_is_judged_by_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "d" / "all", {"a": 12, "b": 12})
    names = [f"all/{kind}/{number:03d}.png" for number in range(12) for kind in "ab"]
    rows = ["path,label", *(f"{name},{'ant' if '/a/' in name else 'bee'}" for name in names)]
    (tmp_path / "d" / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "d" / "test.txt").write_text("\n".join(names[:6]))
    listed = ("data.labels=labels.csv", "data.test_list=test.txt")
    train(*SMALL, *listed, "data.sampling=balanced", "hydra.run.dir=run", cwd=tmp_path)
    record = read_record(tmp_path / "run")
    assert record.classes == ("ant", "bee")
    assert set(record.parts["test"].files) == set(names[:6])
    train("resume=run", *LONGER, cwd=tmp_path)
    assert read_record(tmp_path / "run") == record
    tested = json.loads((tmp_path / "run" / "summary.json").read_text())["selected"]["test_acc"]
    export(["run=run"])
    own = ("data.root=d", *listed)
    for model in (["model=run"], ["model=run/export/packed.safetensors", *own]):
        capsys.readouterr()
        evaluate([*model, "latency=[]"])
        assert f"test       {tested:.4f}  6 images" in capsys.readouterr().out
