"""Models by config: options, torchvision's state dicts and timm families."""

import subprocess
import sys
from urllib.error import URLError

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

from qat.errors import CheckpointError, SpecError
from qat.models.resnet import torchvision_resnet
from qat.models.small import small_model
from qat.models.timm_model import timm_model
from qat.spec.model import SMALL_NAMES, TORCHVISION_NAMES, check_model
from support import ROOT

CONF = ROOT / "conf" / "model"
TASK = {"num_classes": 10, "in_channels": 1, "image_size": 8}
TORCHVISION = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def load(name):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))


def activation_calls(model, images):
    """Calls per module without children and parameters, in one forward pass."""
    calls = {}

    def counter(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    for name, module in model.named_modules():
        if type(module).__module__.endswith(("activation", "activations")):
            calls[name] = 0
            module.register_forward_hook(counter(name))
    model(images)
    return calls


@pytest.mark.parametrize("name", [*SMALL_NAMES, *TORCHVISION_NAMES])
def test_each_config_builds_the_model_of_its_name(name):
    from hydra.utils import instantiate

    config = load(name)
    check_model(config)
    assert config["name"] == name
    assert instantiate(config, **TASK)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_every_config_file_is_known():
    files = {path.stem for path in CONF.glob("*.yaml")}
    assert files == {*SMALL_NAMES, *TORCHVISION_NAMES, "timm"}


@pytest.mark.parametrize("key", ["num_classes", "in_channels", "image_size"])
def test_the_shape_of_the_task_is_checked_by_every_factory(key):
    for build, name in [
        (small_model, "resnet20"),
        (torchvision_resnet, "resnet18"),
        (timm_model, "regnetx_002"),
    ]:
        with pytest.raises(SpecError, match=f"{key} must be an integer >= 1; got 0"):
            build(name, **(TASK | {key: 0}))


@pytest.mark.slow
def test_timm_is_imported_only_when_used():
    # torchvision is not: torchmetrics, which every run needs, imports it anyway
    code = "import sys, qat.models.resnet; print('timm' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_small_model_passes_its_options_on():
    model = small_model("resnet32", norm_affine=False, **TASK)
    assert len(model.layer1) == 5
    assert model.conv1.in_channels == 1
    assert not model.bn1.affine


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_torchvision_state_dict_loads_and_gives_equal_logits(name):
    torch.manual_seed(0)
    theirs = TORCHVISION[name](num_classes=5).eval()
    ours = torchvision_resnet(name, num_classes=5, in_channels=3, image_size=224).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_torchvision_gradients_equal_in_train_mode():
    torch.manual_seed(0)
    theirs = resnet18(num_classes=5)
    ours = torchvision_resnet("resnet18", num_classes=5, in_channels=3, image_size=224)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(("name", "uses"), [("resnet18", 17), ("resnet34", 33), ("resnet50", 49)])
def test_each_torchvision_activation_use_is_its_own_module(name, uses):
    calls = activation_calls(torchvision_resnet(name, **TASK), torch.randn(2, 1, 8, 8))
    assert len(calls) == uses
    assert set(calls.values()) == {1}


@pytest.mark.parametrize(
    ("image_size", "stem", "is_small"),
    [(64, "auto", True), (65, "auto", False), (32, "standard", False), (224, "small", True)],
)
def test_stem_follows_the_image_size_unless_given(image_size, stem, is_small):
    shape = {"num_classes": 10, "in_channels": 3, "image_size": image_size}
    model = torchvision_resnet("resnet18", stem=stem, **shape)
    assert model.conv1.kernel_size == ((3, 3) if is_small else (7, 7))
    assert isinstance(model.maxpool, nn.Identity) == is_small
    maps = []
    model.layer1.register_forward_hook(lambda *a: maps.append(a[2].shape[-1]))
    if image_size <= 65:
        assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 10)
        assert maps == [image_size if is_small else -(-image_size // 4)]


def test_standard_stem_at_224():
    model = torchvision_resnet("resnet18", num_classes=3, in_channels=3, image_size=224).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 3)


@pytest.mark.slow  # by day the networks of test_small.py
def test_torchvision_compiles_as_one_graph_in_train_mode():
    model = torchvision_resnet("resnet18", **TASK).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch hub cache that holds torchvision's own random resnet18 as its ImageNet weights."""
    from torchvision.models import ResNet18_Weights

    torch.manual_seed(0)
    state = resnet18().state_dict()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(state, folder / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return state


def test_weights_fit_grey_images_and_other_classes(hub):
    shape = {"num_classes": 10, "in_channels": 1, "image_size": 96}
    model = torchvision_resnet("resnet18", weights="default", **shape).eval()
    full = torchvision_resnet(
        "resnet18", num_classes=1000, in_channels=3, image_size=96, weights="default"
    ).eval()
    assert torch.equal(full.fc.weight, hub["fc.weight"])
    assert torch.equal(model.layer4[1].conv2.weight, hub["layer4.1.conv2.weight"])
    grey = torch.randn(2, 1, 96, 96)
    features, wide = nn.Identity(), nn.Identity()
    model.fc, full.fc = features, wide
    with torch.no_grad():
        torch.testing.assert_close(model(grey), full(grey.expand(2, 3, 96, 96)))


def test_weights_need_the_standard_stem():
    with pytest.raises(SpecError, match=r"needs model.stem=standard"):
        torchvision_resnet("resnet18", weights="default", **TASK)


def test_weights_without_network_are_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    shape = {"num_classes": 10, "in_channels": 3, "image_size": 224}
    with pytest.raises(CheckpointError, match=r"model.weights=default.*cannot be fetched") as info:
        torchvision_resnet("resnet18", weights="default", **shape)
    assert "\n" not in str(info.value)
