"""Pretrained teachers by name; the weights lie where the libraries look before the network."""

import pytest
import torch

from qat.errors import CheckpointError, SpecError
from qat.models.pretrained import pretrained


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", refuse)


def test_torchvision_weights_out_of_the_cache(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    net = models.squeezenet1_1()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(net.state_dict(), folder / url.rpartition("/")[2])
    teacher, norm = pretrained("torchvision", "squeezenet1_1")
    found = teacher.state_dict()
    assert norm == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("library", "name"), [("torchvision", "squeezenet1_1"), ("timm", "test_resnet")]
)
def test_weights_that_cannot_be_fetched(library, name):
    with pytest.raises(CheckpointError) as caught:
        pretrained(library, name)
    message = str(caught.value)
    assert f"distill.teacher={library}/{name}: its weights cannot be fetched" in message
    assert "connect to the network once, or give a checkpoint" in message


@pytest.mark.parametrize(
    ("library", "name", "word"),
    [
        ("torchvision", "resnet19", "resnet18"),
        ("timm", "resnet19", "resnet18"),
        ("timm", "resnet18.nobody", "resnet18.nobody"),
        ("torchvision", "fasterrcnn_resnet50_fpn", "no network of torchvision"),
    ],
)
def test_unknown_names(library, name, word):
    with pytest.raises(SpecError) as caught:
        pretrained(library, name)
    assert f"distill.teacher={library}/{name}" in str(caught.value)
    assert word in str(caught.value)
