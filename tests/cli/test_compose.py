"""Configs that no command line gave, made into run folders like any other."""

import pytest
from omegaconf import OmegaConf

from qat.compose import checked, conf_folder, recomposed, recorded
from qat.distill_spec import DistillSpec, TeacherTraining
from qat.errors import SpecError
from qat.teacher_training import ensure_teacher, teacher_config


def resolved(*overrides):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=resnet20", "quant=float", "data=cifar10", "data.download=true", "seed=4"],
        ["optimizer=adamw", "~callbacks.quant_stats", "trainer.max_epochs=30", "scheduler=step"],
        ["experiment=faqd_cifar100_resnet56", "data.download=true"],
        ["quant.overrides=[{match: 'layer4.*', weight: {bits: 4, grid: uniform}}]"],
        ["data.root='a b/c=d,e'", "data=cifar10", "data.download=true", "logger=wandb"],
    ],
)  # fmt: skip
def test_a_recorded_config_is_recomposed(overrides, tmp_path):
    config = resolved(*overrides)
    recorded(conf_folder(), tmp_path, config)
    spec = recomposed(conf_folder(), tmp_path)
    assert spec == checked(conf_folder(), overrides)[0]
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / ".hydra" / "config.yaml")) == config


def test_the_teachers_config_is_float_and_learns_from_labels():
    config = resolved(
        "model=resnet20", "distill=faqd_label_free", "unlabelled=photographs", "seed=5",
        "warm_start.epochs=3", "init_from=somewhere", "distill.teacher_training.epochs=7",
    )  # fmt: skip
    training = TeacherTraining(epochs=7, lr=0.3, seed=9)
    teacher = teacher_config(config, DistillSpec(labels=True, teacher_training=training))
    assert "distill" not in teacher
    assert "unlabelled" not in teacher
    assert teacher["model"] == config["model"]
    assert teacher["quant"] == resolved("quant=float")["quant"]
    assert teacher["trainer"]["max_epochs"] == 7
    assert (teacher["optimizer"]["lr"], teacher["seed"]) == (0.3, 9)
    assert (teacher["init_from"], teacher["warm_start"]) == (None, {"epochs": 0})
    assert config["trainer"]["max_epochs"] == 24, "the student's config is not touched"


def test_students_of_all_seeds_and_bits_share_a_teacher_and_models_do_not(tmp_path):
    asked = []

    def train(config, spec, folder):
        asked.append(config["model"]["name"])
        (folder / "status.json").write_text('{"state": "finished"}')
        return 0.0

    distill = DistillSpec(labels=True, teacher_training=TeacherTraining(folder=str(tmp_path)))
    students = [
        ["model=resnet20", "seed=1"],
        ["model=resnet20", "seed=2", "quant=bcgd_w2a4", "warm_start.epochs=2"],
        ["model=resnet20", "unlabelled=photographs", "distill=faqd_label_free"],
        ["model=resnet32"],
    ]
    folders = [ensure_teacher(resolved(*s), distill, train=train) for s in students]
    assert len(set(folders[:3])) == 1
    assert folders[3] != folders[0]
    assert asked == ["resnet20", "resnet32"]


def test_an_interrupted_teacher_is_resumed(tmp_path):
    seen = []

    def train(config, spec, folder):
        seen.append(spec.resume)
        state = "interrupted" if len(seen) == 1 else "finished"
        (folder / "status.json").write_text(f'{{"state": "{state}"}}')
        return 0.0

    distill = DistillSpec(labels=True, teacher_training=TeacherTraining(folder=str(tmp_path)))
    for _ in range(3):
        folder = ensure_teacher(resolved(), distill, train=train)
    assert seen == [None, str(folder)]


def test_a_config_of_no_conf_is_refused(tmp_path):
    config = resolved()
    del config["seed"]
    del config["model"]["weights"]  # null, which no override can take away
    with pytest.raises(SpecError, match=str(tmp_path)):
        recorded(conf_folder(), tmp_path, config)
    assert not (tmp_path / ".hydra").exists()
