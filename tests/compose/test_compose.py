"""Configs that no command line gave, made into run folders like any other."""

import re

import pytest
from omegaconf import OmegaConf

from qat.commands.options import split_data
from qat.compose import checked, composed_data, conf_folder, opened, recorded
from qat.errors import CheckpointError, DataError, SpecError
from qat.spec.check import config_hash
from qat.spec.distill import DistillSpec, TeacherTraining
from qat.spec.overrides import quoted
from qat.train.teacher_training import _identity, ensure_teacher, teacher_config


def resolved(*overrides):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(
            ["model=resnet20", "quant=float", "data=cifar10", "data.download=true", "seed=4"],
            marks=pytest.mark.slow,
        ),
        ["optimizer=adamw", "~callbacks.quant_stats", "trainer.max_epochs=30", "scheduler=step"],
        pytest.param(
            ["experiment=faqd_cifar100_resnet56", "data.download=true"], marks=pytest.mark.slow
        ),
        pytest.param(
            ["quant.overrides=[{match: 'layer4.*', weight: {bits: 4, grid: uniform}}]"],
            marks=pytest.mark.slow,
        ),
        ["data.root='a b/c=d,e'", "data=cifar10", "data.download=true"],
    ],
)  # fmt: skip
def test_a_recorded_config_is_opened(overrides, tmp_path):
    config = resolved(*overrides)
    recorded(conf_folder(), tmp_path, config)
    spec = opened(tmp_path)
    assert spec == checked(conf_folder(), overrides).spec
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


@pytest.mark.parametrize("own", ["trainer.devices=2", "trainer=ddp", "ema.decay=0.999"])
def test_a_teacher_is_found_whatever_moves_the_student_alone(own):
    def identity(*overrides):
        config = resolved("distill=faqd", *overrides)
        return config_hash(_identity(teacher_config(config, DistillSpec(labels=True))))

    assert identity(own) == identity() == identity("trainer.num_nodes=1")
    assert identity("optimizer.lr=0.3") != identity()


def students(tmp_path, *overrides):
    folder = f"distill.teacher_training.folder={tmp_path}"
    given = [*overrides, "distill=faqd", folder]
    return resolved(*given), checked(conf_folder(), given).spec


def finishing(asked):
    def train(config, spec, folder):
        asked.append((config["model"]["name"], spec.resume))
        (folder / "status.json").write_text('{"state": "finished", "metrics": {}}')
        (folder / "summary.json").write_text("{}")
        return 0.0

    return train


def teachers(tmp_path, *students_of_it):
    """Folders of the teachers of several students, and how often one was trained."""
    asked, rehearsed = [], []
    folders = [
        ensure_teacher(
            *students(tmp_path, *overrides),
            rehearse=lambda: rehearsed.append(1),
            train=finishing(asked),
        )
        for overrides in students_of_it
    ]
    assert len(asked) == len(rehearsed)
    return folders, len(asked)


@pytest.mark.slow  # by day test_distill_run.py finds a teacher again
def test_students_share_a_teacher(tmp_path):
    folders, trained = teachers(
        tmp_path,
        ["seed=1"],
        ["seed=2", "quant=bcgd_w2a4", "warm_start.epochs=2", "training.bn_reestimate=3",
         "training.checkpoint_every=7", "training.compile=true", "data.workers=2",
         "trainer.enable_progress_bar=false"],
    )  # fmt: skip
    assert (len(set(folders)), trained) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=0.3",
        pytest.param("model=resnet32", marks=pytest.mark.slow),
        pytest.param("training.label_smoothing=0.1", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_whose_numbers_would_change_is_another(override, tmp_path):
    folders, trained = teachers(tmp_path, ["seed=1"], [override])
    assert (len(set(folders)), trained) == (2, 2)


def test_a_student_that_cannot_be_built_costs_no_training(tmp_path):
    def refuse():
        raise SpecError("no such layer")

    asked = []
    with pytest.raises(SpecError, match="no such layer"):
        ensure_teacher(*students(tmp_path), rehearse=refuse, train=finishing(asked))
    assert asked == []


@pytest.mark.slow
def test_an_interrupted_teacher_is_resumed_and_its_errors_name_it(tmp_path):
    def fail(config, spec, folder):
        (folder / "status.json").write_text('{"state": "interrupted"}')
        raise SpecError("something")

    with pytest.raises(SpecError, match=rf"teacher {tmp_path}/\w+: something"):
        ensure_teacher(*students(tmp_path), rehearse=lambda: None, train=fail)
    asked = []
    for _ in range(2):
        folder = ensure_teacher(*students(tmp_path), rehearse=lambda: None, train=finishing(asked))
    assert asked == [("resnet18", str(folder))]


def test_a_folder_from_elsewhere_calls_nothing_of_its_own(tmp_path):
    config = resolved()
    recorded(conf_folder(), tmp_path, config)
    for file, more in (
        ("overrides.yaml", ["+model.x={_target_: os.mkdir, path: made_by_it}"]),
        ("config.yaml", {"model": {"x": {"_target_": "os.mkdir", "path": "made_by_it"}}}),
    ):
        path = tmp_path / ".hydra" / file
        before = OmegaConf.load(path)
        after = before + more if file == "overrides.yaml" else OmegaConf.merge(before, more)
        OmegaConf.save(after, path)
    with pytest.raises(CheckpointError, match=r"model\.x\._target_=os\.mkdir may not be called"):
        opened(tmp_path, key="distill.teacher")


def test_a_folder_cannot_allow_itself_what_it_calls(tmp_path):
    model = ["model._target_=mypackage.net", "allow_targets=[mypackage.]"]
    recorded(conf_folder(), tmp_path, resolved(*model))
    with pytest.raises(CheckpointError, match=r"mypackage\.net may not be called"):
        opened(tmp_path)
    assert opened(tmp_path, allow_targets=["mypackage."])


def test_a_config_of_no_conf_is_refused(tmp_path):
    config = resolved()
    del config["seed"]
    del config["model"]["weights"]  # null, which no override can take away
    with pytest.raises(SpecError, match=str(tmp_path)):
        recorded(conf_folder(), tmp_path, config)
    assert not (tmp_path / ".hydra").exists()


PATHS = ["/no/p (2012)", "/no/#x", "/no/a&b", "/no/名前", "/no/step=1", "/no/it's", "/no/a[1]"]


@pytest.mark.parametrize("path", PATHS)
def test_any_path_is_looked_for_under_its_own_name(path):
    words, rest = split_data(["data=image_folder", f"data.root={path}", "model=x"])
    assert rest == ["model=x"]
    with pytest.raises(DataError, match=re.escape(f"data.root={path} (")):
        composed_data(conf_folder(), words)


@pytest.mark.parametrize("value", ["a,(b", '"a', "[a", "{a"])
def test_a_value_that_cannot_be_read_is_shown_in_quotes(value):
    override = f"data.root={value}"
    with pytest.raises(SpecError) as caught:
        composed_data(conf_folder(), [override])
    message = str(caught.value)
    assert message.startswith(f"{override} cannot be read (")
    assert message.endswith(f"; put quotes around a text: 'data.root={quoted(value)}'")
    assert "\n" not in message
