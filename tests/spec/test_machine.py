"""What a run asks of its machine: accelerators, packages of loggers, names of networks."""

import re

import pytest
import timm

from qat.errors import SpecError
from qat.spec import extras, machine, timm_names
from qat.spec.machine import check_machine

TENSORBOARD = {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}}


def config(accelerator="auto", logger=None):
    return {"trainer": {"accelerator": accelerator}, "logger": logger or {}}


@pytest.fixture
def has_driver(monkeypatch):
    """Whether the driver's library is there, as a list that the test fills."""
    there = []

    def load(name):
        if not there:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setattr("sys.platform", "linux")
    return there


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_gpu_needs_a_driver(name, has_driver, monkeypatch):
    monkeypatch.setattr(machine, "_builds", lambda: {"cuda": "13.2", "hip": None})
    with pytest.raises(SpecError, match=rf"^trainer\.accelerator={name} .*libcuda.*=auto"):
        check_machine(config(name))
    has_driver.append(True)
    check_machine(config(name))  # PyTorch has the last word


def test_a_gpu_needs_a_pytorch_for_it(has_driver, monkeypatch):
    has_driver.append(True)
    monkeypatch.setattr(machine, "_builds", lambda: {"cuda": None, "hip": None})
    with pytest.raises(SpecError, match="built for CPUs only"):
        check_machine(config("gpu"))
    has_driver.clear()  # AMD's is another one
    monkeypatch.setattr(machine, "_builds", lambda: {"cuda": None, "hip": "7.0"})
    check_machine(config("gpu"))


def test_the_builds_are_those_of_the_installed_pytorch():
    import torch

    builds = machine._builds()
    assert (builds["cuda"], builds["hip"]) == (torch.version.cuda, torch.version.hip)


def test_what_is_there_everywhere_is_not_asked_for(has_driver):
    for name in ("auto", "cpu", None):
        check_machine(config(name))


def test_a_logger_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(SpecError) as caught:
        check_machine(config(logger=TENSORBOARD))
    message = str(caught.value)
    assert message.startswith("logger.tensorboard=TensorBoardLogger needs tensorboard; install the")
    assert "pip install 'qat[tensorboard]'" in message
    assert "pip install -c constraints.txt -e '.[tensorboard]'" in message


def test_either_package_of_a_logger_will_do(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: name == "tensorboardX" or None)
    check_machine(config(logger=TENSORBOARD))
    check_machine(config(logger={"tensorboard": None}))  # left out by logger.tensorboard=null
    check_machine(config(logger={"mine": {"_target_": "mine.TensorBoardLogger"}}))


def test_the_names_read_from_timm_s_source_are_timm_s():
    assert set(timm_names._REGISTERED.findall(timm_names._source())) == set(timm.list_models())


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18.a1_in1k", "resnet18.nope", "convnext_tiny_in22ft1k"]
)
def test_only_what_timm_cannot_know_is_refused(name):
    timm_names.check_timm_name(name, "no such name")


def test_a_name_that_is_none_is_refused_with_those_near():
    told = re.escape("no such name; did you mean resnet18, ")
    with pytest.raises(SpecError, match=told):
        timm_names.check_timm_name("resnet19", "no such name")
    with pytest.raises(SpecError, match="see its list_models"):
        timm_names.check_timm_name("zzzzzz", "no such name")


def test_the_user_s_own_modules_may_register_more():
    own = {"model": {"_target_": machine.TIMM, "name": "my_net"}}
    check_machine(config() | own | {"allow_targets": ["mine."]})
    with pytest.raises(SpecError, match="'my_net'"):
        check_machine(config() | own)
