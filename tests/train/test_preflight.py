"""Preflight: what PyTorch and its libraries refuse, before a run has data or a folder."""

import logging

import pytest

from qat.compose import composed, conf_folder
from qat.errors import SpecError
from qat.train import preflight as module
from qat.train.preflight import preflight


def flown(*overrides):
    run = composed(conf_folder(), list(overrides))
    preflight(run.config, run.spec)


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_an_accelerator_that_pytorch_does_not_see(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SpecError, match=rf"trainer\.accelerator={name} .*PyTorch sees none"):
        flown(f"trainer.accelerator={name}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    flown(f"trainer.accelerator={name}")


@pytest.mark.parametrize("name", [
    "lenet5", "resnet18",
    pytest.param("timm model.name=mobilenetv3_small_050", marks=pytest.mark.slow),
])  # fmt: skip
def test_patterns_of_overrides_are_tried_on_the_network_itself(name):
    model = f"model={name}".split()
    last = {"lenet5": "fc3", "resnet18": "fc"}.get(name, "classifier")
    flown(*model, f"quant.overrides=[{{match: {last}, weight: {{bits: 4}}}}]")
    with pytest.raises(SpecError, match="match='nope' matches no"):
        flown(*model, "quant.overrides=[{match: nope, weight: {bits: 4}}]")


def test_weights_are_not_fetched_for_it(monkeypatch):
    refuse = "qat.models.resnet._load_imagenet"
    monkeypatch.setattr(refuse, lambda *_: pytest.fail("weights were fetched"))
    flown("model.weights=default", "quant.overrides=[{match: fc, weight: {bits: 4}}]")


def test_a_network_that_cannot_be_built_yet_is_left_to_the_run():
    # images of 8 pixels are too small for it; the run says so with the size that they have
    flown("model=timm", "model.name=vgg11", "quant.overrides=[{match: x, weight: {bits: 4}}]")


def test_lightning_s_lines_stay_in_the_run_s_log(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    with module._heard_by_hydra():  # Lightning looks for a handler while it is imported
        assert logging.root.hasHandlers()
    assert not logging.root.hasHandlers()
