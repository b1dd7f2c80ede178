"""One run of Weights & Biases for a run folder, however often it goes on."""

import pytest

from qat.compose import composed, conf_folder
from qat.errors import CheckpointError, SpecError
from qat.train.run import _parts
from qat.train.wandb_id import continued, wandb_id
from support.real_run import train

WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger"}


@pytest.fixture(autouse=True)
def no_agent(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)


def test_a_folder_has_one_id_and_two_folders_have_two(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = wandb_id(tmp_path / "a")
    assert wandb_id(tmp_path / "a") == first
    assert wandb_id(tmp_path / "b") != first


def test_the_logger_of_a_run_gets_it(tmp_path):
    run = composed(conf_folder(), ["logger=wandb", "model=lenet5"])
    ids = {_parts(run.config, run.spec, tmp_path).loggers[0].version for _ in range(2)}
    assert ids == {wandb_id(tmp_path)}


def test_an_agent_brings_its_own_and_the_folder_keeps_it(tmp_path, monkeypatch):
    own = wandb_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "of-an-agent")
    assert wandb_id(tmp_path) == "of-an-agent" != own
    monkeypatch.delenv("WANDB_RUN_ID")
    assert wandb_id(tmp_path) == "of-an-agent"


@pytest.mark.parametrize("text", ["two words", "a/b", " id", "id\n", "é", "x" * 65, "x" * 10_000])
def test_what_an_agent_brings_is_kept_only_if_it_is_an_id(text, tmp_path, monkeypatch):
    own = wandb_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", text)
    with pytest.raises(SpecError, match=r"WANDB_RUN_ID=.* is no id of a W&B run") as caught:
        wandb_id(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    monkeypatch.delenv("WANDB_RUN_ID")
    assert wandb_id(tmp_path) == own


def test_an_agent_that_brings_nothing_leaves_the_folder_its_own(tmp_path, monkeypatch):
    own = wandb_id(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "")
    assert wandb_id(tmp_path) == own


@pytest.mark.parametrize(
    "logger",
    [
        {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"},
        WANDB | {"id": "mine"},
        WANDB | {"version": "mine"},
    ],
)
def test_other_loggers_and_ids_of_ones_own_are_left_alone(logger, tmp_path):
    assert continued(logger, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"a/../b\n", b"two words", b"\xff", b"x" * 1000])
def test_what_is_no_id_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "wandb_id.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"wandb_id\.txt") as caught:
        wandb_id(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # wandb's service
def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path):
    folder, small = tmp_path / "run", ("model=lenet5", "debug=quick", "training.threads=1")
    train(*small, "logger=wandb", f"hydra.run.dir={folder}", cwd=tmp_path)
    train(f"resume={folder}", "trainer.max_epochs=3", "resume_allow=[trainer.max_epochs]",
          cwd=tmp_path)  # fmt: skip
    parts = list(folder.glob("wandb/offline-run-*"))
    assert len(parts) == 2
    assert {part.name.split("-", 3)[3] for part in parts} == {wandb_id(folder)}
