"""A stranger's run folder at every door: nothing that it names is called."""

import json
import os
import pickle
import sys
from contextlib import suppress

import numpy as np
import pytest
from omegaconf import OmegaConf

import qat
from qat.commands import evaluate, export, predict
from qat.commands.train import main
from qat.compose import conf_folder, recorded
from qat.errors import QatError

LOAD = "qat.train.weights.torch.load"


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def composed(*overrides):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.fixture
def hostile(tmp_path):
    """(make a folder with these overrides, the folder that its pickle would make)."""
    folder, made = tmp_path / "run", tmp_path / "made"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(made)))

    def make(*overrides, config=("model=lenet5",)):
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
        values = composed(*(config if config is not None else overrides))
        OmegaConf.save(OmegaConf.create(values), folder / ".hydra" / "config.yaml")
        return folder

    return make, made


def nested(tmp_path):
    """The network's arguments hold a target that loads a pickle."""
    evil = tmp_path / "evil.pkl"
    inner = f"{{_target_: {LOAD}, f: '{evil}', weights_only: false}}"
    return ["model=timm", "model.name=resnet18", f"+model.kwargs.x={inner}"]


def named(tmp_path):
    """The network itself is a function that an allowed module has imported."""
    evil = tmp_path / "evil.pkl"
    target = "torchvision.models.resnet.torch.load"
    return [
        "model=timm", "model.name=x", f"model._target_={target}", f"+model.f={evil}",
        "+model.weights_only=false",
    ]  # fmt: skip


def run_main(*arguments):
    sys.argv = ["train.py", *arguments]
    main()


DOORS = {
    "load_trained": lambda folder: qat.load_trained(folder),
    "evaluate": lambda folder: evaluate.main([f"model={folder}"]),
    "export": lambda folder: export.main([f"run={folder}"]),
    "predict": lambda folder: predict.main([f"{folder}/x.png", f"model={folder}"]),
    "teacher": lambda folder: run_main(
        "model=lenet5", "debug=quick", "distill=kd", f"distill.teacher={folder}",
        f"hydra.run.dir={folder.parent / 'student'}",
    ),
    "resume": lambda folder: run_main(f"resume={folder}"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("attack", [nested, named])
@pytest.mark.product
def test_no_door_calls_what_a_folder_names(attack, door, hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    # as if a checkpoint of any content were there: the network is built before it is read
    monkeypatch.setattr("qat.train.open_run._newest", lambda folder, *_: folder / "any.ckpt")
    make, made = hostile
    folder = make(*attack(tmp_path), config=None)
    (folder / "x.png").write_bytes(b"")
    with pytest.raises((QatError, SystemExit)) as stop:
        DOORS[door](folder)
    told = str(stop.value) + "".join(capsys.readouterr())
    assert "may not be called" in told
    assert not made.exists()


def test_the_attack_would_work(hostile, tmp_path):
    _, made = hostile
    np.load(tmp_path / "evil.pkl", allow_pickle=True)
    assert made.is_dir()


def climbing(evil):
    """The name of a file beside `evil` from within conf/, in which Hydra itself is told to call."""
    (evil.parent / "evil.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: numpy.load\n"
        f"      file: {evil}\n      allow_pickle: true\n"
    )
    return "../" * 30 + str(evil.parent / "evil").lstrip("/")


OWN_WORDS = {
    "allow_targets": lambda evil: [
        "allow_targets=[numpy.]", f"+callbacks.x={{_target_: numpy.load, file: '{evil}', "
        "allow_pickle: true}",
    ],
    "allow_targets appended": lambda evil: [
        "++allow_targets=[numpy.]", "+callbacks.x._target_=numpy.load",
        f"+callbacks.x.file='{evil}'", "+callbacks.x.allow_pickle=true",
    ],
    "hydra.callbacks": lambda evil: [
        "+hydra.callbacks.x._target_=numpy.load", f"+hydra.callbacks.x.file='{evil}'",
        "+hydra.callbacks.x.allow_pickle=true",
    ],
    "hydra as one key": lambda evil: [
        f"+hydra={{callbacks: {{x: {{_target_: numpy.load, file: '{evil}', allow_pickle: true}}}}}}"
    ],
    "a package": lambda evil: [
        "+callbacks@hydra.callbacks=default",
        "hydra.callbacks.quant_stats={_target_: numpy.load, "
        f"file: '{evil}', allow_pickle: true}}",
    ],
    "the environment": lambda evil: ["+hydra.job.env_set.QAT_TEST_HOSTILE=heard"],
    "where it searches": lambda evil: [
        "hydra.searchpath=[file:///nowhere]", "hydra/launcher=basic",
    ],
    "a file outside of conf": lambda evil: [f"model={climbing(evil)}"],
    "an experiment outside of conf": lambda evil: [f"experiment={climbing(evil)}"],
    "a group of several": lambda evil: [f"unlabelled=[task,{climbing(evil)}]"],
    "the environment, escaped": lambda evil: [r"init_from=$\{oc.env:HOME\}"],
    "what is no override": lambda evil: ["{{{"],
}  # fmt: skip


# by day one word of each kind: a key, a node of Hydra, a file, a text
BY_DAY = ("allow_targets", "hydra.callbacks", "a file outside of conf", "what is no override")


@pytest.mark.parametrize(
    "words",
    [pytest.param(w, marks=() if w in BY_DAY else pytest.mark.slow) for w in OWN_WORDS],
)
def test_resume_hears_no_folder_on_hydra_and_targets(words, hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    make, made = hostile
    quick = ["model=lenet5", "debug=quick", "callbacks=default", "audit_only=true"]
    folder = make(*quick, *OWN_WORDS[words](tmp_path / "evil.pkl"), config=tuple(quick))
    with suppress(SystemExit):
        run_main(f"resume={folder}")
    printed = capsys.readouterr()
    # not heard: the audit that the run asks for comes out
    assert "LAYER" in printed.out.upper(), printed.err
    assert not made.exists()
    assert "QAT_TEST_HOSTILE" not in os.environ


@pytest.mark.parametrize(
    ("node", "word"),
    [
        ("{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: a}", "save_dir"),
        ("{_target_: lightning.pytorch.loggers.CSVLogger, name: ../victim, version: a}", "name"),
        ("{_target_: lightning.pytorch.loggers.CSVLogger, name: '..', version: '..'}", "name"),
        ("{_target_: lightning.pytorch.loggers.WandbLogger, dir: x}", "dir"),
        ("{_target_: lightning.pytorch.loggers.WandbLogger, tags: [a, /b]}", "tags[1]"),
        ("{_target_: lightning.pytorch.loggers.WandbLogger, entity: other}", "entity"),
        ("{_target_: lightning.pytorch.loggers.CometLogger, api_key: other}", "api_key"),
    ],
)
def test_a_folder_names_no_place_for_files(node, word, hostile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    make, _ = hostile
    folder = make(config=("model=lenet5", "debug=quick", f"+logger.x={node}"))
    with pytest.raises(SystemExit):
        run_main(f"resume={folder}", "audit_only=true")
    assert f"logger.x.{word}=" in capsys.readouterr().err
    if word == "save_dir":
        run_main(f"resume={folder}", "audit_only=true", "+logger.x.save_dir=a")


@pytest.mark.parametrize("text", ["${oc.env:HOME}", r"$\{oc.env:HOME\}", r"$\\{x}"])
@pytest.mark.parametrize("place", ["{'init_from': T}", "{'quant': {'overrides': [{'match': T}]}}"])
def test_a_saved_config_that_would_be_looked_up_is_refused(text, place, tmp_path):
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(eval(place, {"T": text})))
    with pytest.raises(QatError, match="would be looked up"):
        qat.load_trained(tmp_path / "run")


def test_the_command_line_is_heard_on_targets(tmp_path, monkeypatch):
    """What a folder may not say, its owner says again: nothing is lost."""
    model = ["model._target_=mypackage_h.net", "allow_targets=[mypackage_h.]"]
    recorded(conf_folder(), tmp_path, composed(*model))
    (tmp_path / "mypackage_h.py").write_text(
        "from qat.models.small import LeNet5\n\n\ndef net(**shape):\n"
        "    shape.pop('name'), shape.pop('stem'), shape.pop('weights')\n"
        "    return LeNet5(**shape, norm_affine=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(QatError, match="may not be called"):
        qat.load_trained(tmp_path)
    with pytest.raises(QatError, match="has no selected checkpoint"):  # one step further
        qat.load_trained(tmp_path, allow_targets=["mypackage_h."])
