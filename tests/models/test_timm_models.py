"""timm families on small images, and the answers to names and options that cannot work."""

import pytest
import torch
from omegaconf import OmegaConf

from qat.errors import CheckpointError, SpecError
from qat.models.timm_model import timm_model
from qat.spec.model import check_model
from support import ROOT

CONF = ROOT / "conf" / "model"
TASK = {"num_classes": 10, "in_channels": 1, "image_size": 8}


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


def test_timm_config_asks_for_a_name_and_then_builds():
    from hydra.utils import instantiate

    config = load("timm")
    with pytest.raises(SpecError, match=r"model.name must be a text; got None; give a name"):
        check_model(config)
    config |= {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "depth": 1}}
    check_model(config)
    model = instantiate(OmegaConf.create(config), **TASK)
    assert model.patch_embed.proj.kernel_size == (4, 4)


FAMILIES = {
    "regnetx_002": {"ReLU": 40},
    "regnety_002": {"ReLU": 53, "Sigmoid": 13},
    "mobilenetv3_small_050": {"Hardswish": 19, "ReLU": 14, "Hardsigmoid": 9},
    "vit_tiny_patch16_224": {"GELU": 12},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_families_on_small_grey_images(name):
    model = timm_model(name, num_classes=10, in_channels=1, image_size=32)
    assert model.training
    images = torch.randn(2, 1, 32, 32)
    calls = activation_calls(model, images)
    assert set(calls.values()) == {1}
    kinds = [type(model.get_submodule(n)).__name__ for n in calls]
    assert {kind: kinds.count(kind) for kind in kinds} == FAMILIES[name]
    assert model(images).shape == (2, 10)


def test_timm_name_close_matches():
    with pytest.raises(SpecError, match=r"got 'regnetx_02'; did you mean .*regnetx_002"):
        timm_model("regnetx_02", **TASK)
    with pytest.raises(SpecError, match=r"see its list_models"):
        timm_model("hf-hub:somebody/something", **TASK)


def test_timm_unknown_tag_names_the_known_ones():
    with pytest.raises(SpecError, match=r"unknown tag; use .*resnet18.a1_in1k"):
        timm_model("resnet18.nope", **TASK)


def test_timm_refuses_images_that_are_no_multiple_of_the_patch():
    with pytest.raises(SpecError, match=r"patches of 16 pixels.*patch_size=2"):
        timm_model("vit_tiny_patch16_224", **TASK)
    with pytest.raises(SpecError, match=r"patches of 16 pixels.*patch_size=10"):
        timm_model("vit_tiny_patch16_224", **(TASK | {"image_size": 40}))
    model = timm_model("vit_tiny_patch16_224", kwargs={"patch_size": 2, "depth": 1}, **TASK)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_timm_refuses_images_that_shrink_to_nothing():
    with pytest.raises(SpecError, match=r"cannot take images of 1x8x8"):
        timm_model("convnext_atto", **TASK)


def test_timm_names_an_unknown_argument():
    with pytest.raises(SpecError, match=r"argument 'foo'\); change model.kwargs"):
        timm_model("regnetx_002", kwargs={"foo": 1}, **TASK)


def test_timm_weights_without_network_are_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub_constants

    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model.pretrained=true.*cannot be fetched") as info:
        timm_model("regnetx_002", pretrained=True, **TASK)
    assert "\n" not in str(info.value)


def test_timm_without_published_weights():
    import timm

    name = next(n for n in timm.list_models() if not timm.is_model_pretrained(n))
    with pytest.raises(SpecError, match=r"timm has no weights"):
        timm_model(name, pretrained=True, **TASK)
