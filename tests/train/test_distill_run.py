"""The real command with a teacher: what it leaves, and that labels are not needed."""

import json

import pytest
import torch

from support.real_run import PLAIN, differences, kill_after, tensors, train

SMALL = [
    "model=lenet5", "trainer.max_epochs=2", "warm_start.epochs=1", "training.threads=1",
    "training.checkpoint_every=9", *PLAIN,
]  # fmt: skip
# random directions and a learned adapter: whatever a resume could lose
FREE = [*SMALL, "distill=faqd_label_free", "distill.features.loss=projected_affinity",
        "distill.features.adapter=conv_relu"]  # fmt: skip

POISON = """
import sys
import torch
from qat.data.dataset import TensorImages
from qat.data.digits import Digits
from qat.data.split import Parts

poison, sys.argv[1:] = sys.argv[1], sys.argv[2:]
load = Digits.load

def poisoned(self):
    parts = load(self)
    def spoiled(images):
        labels = {
            "nan": torch.full((len(images),), float("nan")),
            "range": torch.full((len(images),), -(10**6)),
        }[poison]
        return TensorImages(images.images, labels)
    return Parts(spoiled(parts.train), spoiled(parts.validation), parts.test)

Digits.load = poisoned
from qat.commands.train import main
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("distill")


@pytest.fixture(scope="module")
def first(home):
    """The first run, without a teacher given; what it printed."""
    return train(*FREE, f"hydra.run.dir={home / 'run'}", cwd=home)


@pytest.fixture(scope="module")
def run(first, home):
    return home / "run"


@pytest.fixture(scope="module")
def teacher(first, home):
    (folder,) = (home / "runs" / "teachers").iterdir()
    return folder


def test_the_teacher_is_trained_first_and_found_again(first, run, teacher, home):
    assert "distill.teacher is null: training the float teacher first, in runs/teachers/" in first
    content = json.loads((teacher / "summary.json").read_text())
    assert content["rule"]["name"] == "float_only"
    assert content["epochs"] == 2
    out = train(*FREE, "seed=2", f"hydra.run.dir={home / 'second'}", cwd=home)
    assert "trained earlier for the same config" in out
    assert len(list((home / "runs" / "teachers").iterdir())) == 1


def test_the_summary_says_what_was_learned_from_whom(run, teacher):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher"]["origin"].startswith("runs/teachers/")
    assert summary["teacher"]["layers"] == {"student": ["relu2"], "teacher": ["relu2"]}
    own = json.loads((teacher / "summary.json").read_text())
    assert summary["teacher"]["test_acc"] == own["selected"]["test_acc"]
    for state in ("warm_start", "last", "selected"):
        assert "val_acc" not in summary[state]
        assert 0 <= summary[state]["val_agreement"] <= 1
        assert 0 <= summary[state]["test_acc"] <= 1


def test_the_teacher_is_not_in_the_checkpoint_and_the_adapter_is(run, teacher):
    found = tensors(run)
    outside = {key for key in found if not key.startswith(("net.", "latent "))}
    adapters = {f"feature_loss.adapters.0.0.{name}" for name in ("weight", "bias")}
    assert adapters <= outside
    assert not [key for key in found if "teacher" in key.partition(".")[0]]
    (newest,) = (run / "checkpoints" / "best").glob("*.ckpt")
    record = torch.load(newest, weights_only=True)["qat"]["teacher"]
    assert len(record["sha256"]) == 64


def test_the_adapter_learns_and_is_no_part_of_the_trained_student(run):
    from qat import load_trained

    net, _ = load_trained(run)
    assert not [name for name, _ in net.named_parameters() if "adapter" in name]
    before = torch.load(run / "checkpoints" / "warm_start.ckpt", weights_only=True)["state_dict"]
    after, key = tensors(run), "feature_loss.adapters.0.0.weight"
    assert not torch.equal(before[key], after[key])


@pytest.mark.parametrize("poison", ["nan", pytest.param("range", marks=pytest.mark.slow)])
def test_poisoned_labels_change_no_bit_of_the_selected_student(poison, run, teacher, home):
    script = home / "poisoned.py"
    script.write_text(POISON)
    folder = home / poison
    train(poison, *FREE, f"hydra.run.dir={folder}", cwd=home, script=script)
    assert differences(run, folder, "best") == []
    assert differences(run, folder, "last") == []
    assert (folder / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_the_poison_kills_a_run_that_looks_at_labels(teacher, home):
    script = home / "poisoned.py"
    script.write_text(POISON)
    folder = home / "looking"
    arguments = [*SMALL, "distill=faqd", f"distill.teacher={teacher}", f"hydra.run.dir={folder}"]
    train("nan", *arguments, cwd=home, code=1, script=script)


@pytest.mark.slow
def test_a_killed_run_ends_on_the_same_bits(run, home):
    folder = home / "killed"
    kill_after(18, folder, *FREE, cwd=home)
    train(f"resume={folder}", cwd=home)
    assert differences(run, folder) == []
    assert (folder / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_resume_with_another_teacher_is_refused(run, home, tmp_path):
    folder = tmp_path / "killed"
    other = tmp_path / "other"
    train(*SMALL, "quant=float", "seed=7", f"hydra.run.dir={other}", cwd=home)
    link = tmp_path / "teacher"
    link.symlink_to(next((home / "runs" / "teachers").iterdir()))
    kill_after(18, folder, *FREE, f"distill.teacher={link}", cwd=home)
    link.unlink()
    link.symlink_to(other)
    out = train(f"resume={folder}", cwd=home, code=1)
    assert "the run began with the teacher" in out
    assert "bring that one back, or start a new run" in out


@pytest.mark.slow
def test_a_teacher_of_other_images_is_refused(teacher, home):
    out = train(
        *SMALL, "distill=faqd", f"distill.teacher={teacher}", "data.image_size=12",
        f"hydra.run.dir={home / 'sizes'}", cwd=home, code=1,
    )  # fmt: skip
    assert "image_size 8, the student has data=digits with 12" in out


@pytest.mark.slow
def test_a_teacher_out_of_a_file_of_weights(teacher, home, tmp_path):
    from qat import load_trained

    net, _ = load_trained(teacher)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    quick = ["debug=quick", "training.threads=1", "distill=kd"]
    arguments = [*quick, f"distill.teacher={tmp_path / 'weights.pt'}", "model=resnet20"]
    fitting = [*arguments, "model@distill.teacher_model=lenet5"]
    train(*fitting, f"hydra.run.dir={tmp_path / 'fits'}", cwd=home)
    out = train(*arguments, f"hydra.run.dir={tmp_path / 'fits_not'}", cwd=home, code=1)
    assert "does not hold the weights of {'name': 'resnet20'" in out
    assert "model@distill.teacher_model=NAME" in out


@pytest.mark.slow
def test_a_teacher_out_of_a_checkpoint_of_a_run(teacher, home, tmp_path):
    # its name has a `=`, which Hydra alone would stumble over
    checkpoint = max((teacher / "checkpoints" / "last").glob("*.ckpt"))
    quick = ["debug=quick", "model=lenet5", "training.threads=1", "distill=kd"]
    folder = tmp_path / "run"
    out = train(*quick, f"distill.teacher={checkpoint}", f"hydra.run.dir={folder}", cwd=home)
    assert str(checkpoint) in out
    record = json.loads((folder / "summary.json").read_text())["teacher"]
    assert record["origin"] == str(checkpoint)


@pytest.mark.slow
def test_a_resume_with_other_images_is_refused(teacher, home, tmp_path):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        Image.new("L", (8, 8), 4 * number).save(images / f"{number:02}.png")
    arguments = [
        "model=lenet5", "trainer.max_epochs=9", "warm_start.epochs=1", "training.threads=1",
        "training.checkpoint_every=2", "data.batch_size=4", "distill=faqd_label_free",
        f"distill.teacher={teacher}", "unlabelled=folder", f"unlabelled.folder.root={images}",
    ]  # fmt: skip
    folder = tmp_path / "run"
    kill_after(16, folder, *arguments, cwd=home)
    (images / "59.png").rename(images / "61.png")
    out = train(f"resume={folder}", cwd=home, code=1)
    assert "the data are not those that the run began with: train: other images without" in out


@pytest.mark.slow
def test_options_of_a_torchvision_set(teacher, home, tmp_path):
    arguments = [
        "debug=quick", "model=lenet5", "distill=faqd_label_free", f"distill.teacher={teacher}",
        "unlabelled=torchvision", "unlabelled.torchvision.name=FakeData",
        "unlabelled.torchvision.options={size: 70, image_size: [3, 9, 9]}", "training.threads=1",
    ]  # fmt: skip
    train(*arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=home)


def test_an_audit_trains_no_teacher(tmp_path):
    out = train(*SMALL, "distill=faqd_label_free", "audit_only=true", cwd=tmp_path)
    assert "on their grids" in out
    assert out.splitlines()[-4:-1] == [
        "export: packed    packed.safetensors",
        "export: onnx      faithful.onnx, fast.onnx",
        "export: qonnx     qonnx.onnx",
    ]
    assert not (tmp_path / "runs" / "teachers").exists()


def test_a_student_that_cannot_be_built_trains_no_teacher(tmp_path):
    out = train(*SMALL, "distill=faqd", "distill.layers=[nonsense]", cwd=tmp_path, code=1)
    assert "'nonsense' has no feature map; candidates are" in out
    assert not list((tmp_path / "runs" / "teachers").rglob("*.ckpt"))
