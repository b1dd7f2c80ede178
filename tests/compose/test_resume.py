"""What a command changes of a run that it resumes."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qat.compose import conf_folder, resumed
from qat.errors import SpecError

CONF = conf_folder()


@pytest.fixture
def run(tmp_path):
    """Make the folder of a run with these overrides, and with these keys of its config gone."""

    def make(*overrides, without=()):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
        for key in without:
            group, _, name = key.rpartition(".")
            del (config[group] if group else config)[name]
        (tmp_path / ".hydra").mkdir()
        OmegaConf.save(OmegaConf.create(config), tmp_path / ".hydra" / "config.yaml")
        return tmp_path

    return make


def config_of(folder, *overrides):
    return resumed(CONF, [f"resume={folder}", *overrides]).config


OWN = ["model=lenet5", "quant=lsq_w4a4", "trainer.max_epochs=3", "+trainer.inference_mode=true",
       "warm_start.epochs=0", "optimizer.lr=0.25"]  # fmt: skip


def test_the_same_command_again_changes_nothing(run):
    folder = run(*OWN)
    alone = config_of(folder)
    assert config_of(folder, *OWN) == alone | {"resume": str(folder)}
    assert alone["model"]["name"] == "lenet5"
    assert alone["optimizer"]["lr"] == 0.25


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.max_epochs=24", "trainer.max_epochs: 3 -> 24"),  # the default of conf/
        ("model=resnet18", "model._target_"),  # likewise
        ("optimizer=sgd", "optimizer.lr: 0.25 -> 0.02"),
        ("experiment=glyphs_resnet20", "data.glyphs.difficulty: absent"),
        ("+trainer.overfit_batches=0.5", "trainer.overfit_batches: absent -> 0.5"),
        ("~trainer.inference_mode", "trainer.inference_mode: True -> absent"),
        ("distill=kd", "distill"),
    ],
)
def test_what_another_run_would_be_is_refused_by_key(word, told, run):
    folder = run(*OWN)
    with pytest.raises(SpecError) as caught:
        resumed(CONF, [f"resume={folder}", word])
    assert told in str(caught.value)
    assert "resume_allow=[" in str(caught.value)


def test_keys_that_are_allowed_change_and_keys_that_move_nothing_need_no_leave(run):
    folder = run(*OWN)
    config = config_of(
        folder, "trainer.max_epochs=24", "resume_allow=[trainer.max_epochs]", "data.workers=2"
    )
    assert config["trainer"]["max_epochs"] == 24
    assert config["data"]["workers"] == 2
    assert config["trainer"]["inference_mode"] is True


def test_a_key_that_came_later_stays_away_unless_it_is_named(run):
    folder = run(*OWN, without=["training.label_smoothing", "callbacks"])
    assert "label_smoothing" not in config_of(folder)["training"]
    assert "callbacks" not in config_of(folder)
    named = ["training.label_smoothing=0.1", "resume_allow=[training.label_smoothing]"]
    assert config_of(folder, *named)["training"]["label_smoothing"] == 0.1


def test_hydra_hears_the_command_alone(run):
    folder = run(*OWN)
    (folder / ".hydra" / "overrides.yaml").write_text("- hydra.job.name=x\n- seed=7\n")
    found = resumed(CONF, [f"resume={folder}", "hydra.verbose=true", "data.workers=1"])
    assert found.overrides[0] == "hydra.verbose=true"
    assert [o.partition("=")[0] for o in found.overrides[1:]] == [
        "hydra.run.dir", "hydra.output_subdir",
    ]  # fmt: skip
    assert found.config["seed"] == 1


@pytest.mark.parametrize("word", ["optimiser.lr=1", "model=resnet19", "quant.weight.bit=2"])
def test_mistakes_are_told_as_in_any_command(word, run):
    folder = run(*OWN)
    with pytest.raises(SpecError, match=r"is not an option|is unknown|did you mean"):
        resumed(CONF, [f"resume={folder}", word])


def test_no_folder_no_run():
    assert resumed(CONF, ["seed=1"]) is None
    assert resumed(CONF, ["resume=null"]) is None
