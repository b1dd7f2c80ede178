"""Pretrained teachers by name; the weights lie where the libraries look before the network."""

import pytest
import torch
from huggingface_hub import constants

from qat.errors import CheckpointError, SpecError
from qat.models.hub import hub_or_cache
from qat.models.pretrained import pretrained
from qat.models.timm_model import timm_model


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


class Client:
    """Of the hub's library, which fails so many times."""

    def __init__(self, monkeypatch, failures):
        self.asked, self.failures = 0, failures
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: self)
        monkeypatch.setattr("qat.models.hub._PAUSE", 0.0)

    def head(self, url, *, timeout):
        self.asked += 1
        if self.asked <= self.failures:
            raise RuntimeError("no route to host\nand more")


@pytest.mark.parametrize("build", [
    lambda: pretrained("timm", "test_resnet"),
    lambda: timm_model(
        "test_resnet", num_classes=2, in_channels=3, image_size=32, pretrained=True
    ),
])  # fmt: skip
def test_a_hub_out_of_reach_is_asked_twice_and_not_for_a_minute(build, monkeypatch, caplog):
    client = Client(monkeypatch, failures=9)
    with pytest.raises(CheckpointError) as caught:
        build()
    assert "https://huggingface.co cannot be reached: no route to host); connect" in str(
        caught.value
    )
    assert client.asked == 2
    assert "Retrying" not in caplog.text
    assert constants.HF_HUB_OFFLINE is False


def test_out_of_reach_the_cache_serves(monkeypatch):
    Client(monkeypatch, failures=9)
    with hub_or_cache():  # the library's own mode for that
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("failures", [0, 1])
def test_a_hub_in_reach_is_left_alone(failures, monkeypatch):
    client = Client(monkeypatch, failures)
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is False
    assert client.asked == failures + 1


def test_who_is_offline_by_choice_is_not_asked_for(monkeypatch):
    client = Client(monkeypatch, failures=0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is True
    assert client.asked == 0
    assert constants.HF_HUB_OFFLINE is True


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
